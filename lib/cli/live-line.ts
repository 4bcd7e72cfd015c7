import type { Context } from './context';

/** One line on stderr that is written over and over, and disappears; nothing when nobody watches. */
export class LiveLine {
  private shown = false;

  constructor(private readonly context: Pick<Context, 'watched' | 'width'>) {}

  update(text: string): void {
    if (!this.context.watched) return;
    process.stderr.write(`\r\u001b[K${[...text].slice(0, this.context.width - 1).join('')}`);
    this.shown = true;
  }

  stop(): void {
    if (this.shown) process.stderr.write('\r\u001b[K');
    this.shown = false;
  }
}
