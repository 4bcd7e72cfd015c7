/** One stop string and how much of it the text so far ends with. */
class Matcher {
  #matched = 0;
  /** For each prefix length: the longest shorter prefix that is also its suffix (Knuth-Morris-Pratt). */
  readonly #fallback: Uint32Array;

  constructor(readonly text: string) {
    this.#fallback = new Uint32Array(text.length + 1);
    for (let end = 1; end < text.length; end++) {
      this.#fallback[end + 1] = this.#extend(this.#fallback[end] as number, text.charCodeAt(end));
    }
  }

  /** Takes one UTF-16 unit; returns how many units of the stop string the text now ends with. */
  push(unit: number): number {
    this.#matched = this.#extend(this.#matched, unit);
    return this.#matched;
  }

  reset(): void {
    this.#matched = 0;
  }

  #extend(length: number, unit: number): number {
    let prefix = length;
    while (prefix > 0 && this.text.charCodeAt(prefix) !== unit) {
      prefix = this.#fallback[prefix] as number;
    }
    return this.text.charCodeAt(prefix) === unit ? prefix + 1 : 0;
  }
}

/**
 * Finds stop strings in streamed text, also across the borders of its pieces. The text ends where the
 * first stop string is complete (the longest, if several are), and that string is not emitted. Only
 * text that could be the beginning of a stop string is held back. The result does not depend on how
 * the text is cut into pieces. Time is linear in the text, times the number of stop strings.
 */
export class StopStrings {
  readonly #matchers: readonly Matcher[];
  #held = '';
  #stopped = false;

  /** `stops`: non-empty strings, without unpaired surrogates. */
  constructor(stops: readonly string[]) {
    this.#matchers = stops.map((stop) => new Matcher(stop));
  }

  /** The text that is safe to emit now, and whether a stop string ended the sequence. */
  push(text: string): { text: string; stopped: boolean } {
    if (this.#stopped) return { text: '', stopped: true };
    const pending = this.#held + text;
    let hold = 0;
    for (let end = this.#held.length; end < pending.length; end++) {
      hold = 0;
      let found = 0;
      for (const matcher of this.#matchers) {
        const matched = matcher.push(pending.charCodeAt(end));
        hold = Math.max(hold, matched);
        if (matched === matcher.text.length) found = Math.max(found, matched);
      }
      if (found > 0) return this.#stop(pending.slice(0, end + 1 - found));
    }
    if (text === '') return { text: '', stopped: false };
    this.#held = pending.slice(pending.length - hold);
    return { text: pending.slice(0, pending.length - hold), stopped: false };
  }

  /** What is still held back at the end of the sequence; afterwards a new sequence may begin. */
  flush(): string {
    const rest = this.#held;
    this.#held = '';
    this.#stopped = false;
    for (const matcher of this.#matchers) matcher.reset();
    return rest;
  }

  #stop(text: string): { text: string; stopped: boolean } {
    this.#held = '';
    this.#stopped = true;
    return { text, stopped: true };
  }
}
