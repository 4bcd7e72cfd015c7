import { Option, type Command } from 'commander';

import type { LoadProgress } from '../load-options';
import type { ReadingProgress } from '../train/data/load-data';
import type { Context } from './context';
import { formatBytes, formatCount } from './format';
import { LiveLine } from './live-line';
import { realNumber, wholeNumber } from './options';

/** What `loza calibrate` and `loza train` share. */

export const many = 2 ** 30;

/** Flags of every run over data; `steps` says what they are steps of. */
export function addTrainingFlags(
  command: Command,
  { steps, learningRate }: { steps: string; learningRate: string },
): Command {
  return command
    .option('--sequence-length <n>', 'tokens of a sequence (default 4096)', wholeNumber(2, 2 ** 24))
    .option('--steps <n>', `${steps} (default 200)`, wholeNumber(1, many))
    .option('--batch <n>', 'sequences of a step (default 8)', wholeNumber(1, many))
    .option(
      '--learning-rate <x>',
      `peak of the learning rate (default ${learningRate})`,
      realNumber(0, 1),
    )
    .option('--seed <n>', 'decides the order of the data', wholeNumber(0, 2 ** 53 - 1));
}

/** A flag with these values, of which the first is the default. */
export function choiceFlag(flag: string, about: string, choices: readonly string[]): Option {
  return new Option(flag, `${about} (default ${choices[0]})`).choices(choices);
}

type CommonProgress =
  | ReadingProgress
  | ({ phase: 'loading' } & LoadProgress)
  | { phase: 'planned'; bytes: number; sequences: number; tokens: number; targets: number };

/** Runs `start` and shows how far it is; `describe` says it of what other commands do not do. */
export async function watchRun<Own extends { phase: string }, Report>(
  context: Context,
  start: (watch: {
    signal: AbortSignal;
    onProgress: (progress: Own | CommonProgress) => void;
  }) => Promise<Report>,
  describe: (progress: Own) => string,
): Promise<Report> {
  const line = new LiveLine(context);
  const onProgress = (progress: Own | CommonProgress) => {
    if (!isCommon(progress)) return line.update(describe(progress));
    if (progress.phase !== 'planned') return line.update(describeCommon(progress));
    line.stop();
    context.note(describePlan(progress));
  };
  try {
    return await start({ signal: context.signal, onProgress });
  } finally {
    line.stop();
  }
}

function isCommon(progress: { phase: string }): progress is CommonProgress {
  return ['reading', 'loading', 'planned'].includes(progress.phase);
}

function describeCommon(progress: Exclude<CommonProgress, { phase: 'planned' }>): string {
  if (progress.phase === 'loading') {
    return `loading ${formatBytes(progress.loadedBytes)} of ${formatBytes(progress.totalBytes)}`;
  }
  return `reading document ${formatCount(progress.done + 1)} of ${formatCount(progress.total)}`;
}

/** The data and the memory of a run, on one line. */
function describePlan(plan: CommonProgress & { phase: 'planned' }): string {
  const { bytes, sequences, tokens, targets } = plan;
  const data = `${formatCount(sequences)} sequences, ${formatCount(tokens)} tokens`;
  return `[${data}, ${formatCount(targets)} of them learned · needs ${formatBytes(bytes)}]`;
}
