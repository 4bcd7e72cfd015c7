import { SingleBar } from 'cli-progress';

import type { Context } from './context';
import { formatBytes, formatCount, formatDuration } from './format';

/** A bar on stderr that disappears when it is stopped; nothing at all when nobody watches. */
export interface Progress {
  /** `leftMs`: milliseconds that the rest will take, where that is known. */
  update(done: number, total: number, leftMs?: number): void;
  stop(): void;
}

const silent: Progress = { update: () => {}, stop: () => {} };

/** Shows `title`, a bar and what is done of how much, from the first update on. */
export function startProgress(
  context: Context,
  title: string,
  unit: 'tokens' | 'bytes' | 'runs' | 'cases' = 'tokens',
): Progress {
  if (!context.watched) return silent;
  const show = (value: number) => (unit === 'bytes' ? formatBytes(value) : formatCount(value));
  const bar = new SingleBar({
    stream: process.stderr,
    clearOnComplete: true,
    gracefulExit: false,
    barsize: 24,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    format: `${title} {bar} {done} of {all}${unit === 'bytes' ? '' : ` ${unit}`}{left}`,
  });
  let running = false;
  return {
    update(done, total, leftMs) {
      const left = leftMs === undefined ? '' : `, ${formatDuration(leftMs)} left`;
      const payload = { done: show(done), all: show(total), left };
      if (running) bar.update(done, payload);
      else bar.start(total, done, payload);
      running = true;
    },
    stop() {
      if (running) bar.stop();
      running = false;
    },
  };
}
