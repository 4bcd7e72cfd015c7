/** What every command gets: where its results go, who is watching, and what stops it. */
export class Context {
  /** Results as JSON, nothing else on stdout, no progress. */
  json = false;

  constructor(readonly signal: AbortSignal) {}

  /** True when a person sees stderr: then it shows progress and remarks. */
  get watched(): boolean {
    return process.stderr.isTTY && !this.json;
  }

  /** Columns for drawings and tables. */
  get width(): number {
    const columns = process.stdout.isTTY ? process.stdout.columns : 100;
    return Math.min(Math.max(columns, 40), 100);
  }

  /** A result: one line or several, on stdout. */
  print(text: string): void {
    process.stdout.write(`${text}\n`);
  }

  /** A result as one line of JSON. */
  printJson(value: unknown): void {
    process.stdout.write(`${JSON.stringify(value)}\n`);
  }

  /** A remark for whoever watches, on stderr. */
  note(text: string): void {
    if (this.watched) process.stderr.write(`${text}\n`);
  }
}

/**
 * A command did its work and printed its result, which is bad news: exit code 1, with the message
 * on stderr and, unlike an error, nothing more on stdout.
 */
export class BadResult extends Error {}
