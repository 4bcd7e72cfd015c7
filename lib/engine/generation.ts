import { abortedError, LozaError } from '../errors';
import type { GeneratePart, GenerateResult } from './generate-job';

/** What a generation hears of its work. */
export interface GenerationListener {
  onPart(part: GeneratePart): void;
  /** Every sample is whole; one unless `n` said more. */
  onDone(results: readonly GenerateResult[]): void;
  onError(error: unknown): void;
}

/** Starts the work; returns what takes it back. */
export type StartGeneration = (listener: GenerationListener) => Promise<() => void>;

type Outcome = { results: readonly GenerateResult[] } | { error: unknown };

/**
 * A running generation: iterate over its parts, or await its `result()`, or both. It starts with the
 * first of these. Leaving the loop early stops the work and frees its memory.
 */
export class Generation implements AsyncIterable<GeneratePart> {
  private readonly parts: GeneratePart[] = [];
  private outcome: Outcome | undefined;
  private readonly waiting = new Set<() => void>();
  private cancel: (() => void) | undefined;
  private started = false;

  constructor(
    private readonly start: StartGeneration,
    private readonly signal: AbortSignal | undefined,
  ) {}

  /** The whole text and everything known about it. Rejects with a LozaError. */
  async result(): Promise<GenerateResult> {
    const [first] = await this.results();
    return first as GenerateResult;
  }

  /** The same of all samples; there are several with the option `n`. */
  async results(): Promise<readonly GenerateResult[]> {
    this.begin();
    while (this.outcome === undefined) await this.change();
    if ('error' in this.outcome) throw this.outcome.error;
    return this.outcome.results;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratePart, void, undefined> {
    this.begin();
    try {
      for (let next = 0; ; next++) {
        while (next >= this.parts.length && this.outcome === undefined) await this.change();
        const part = this.parts[next];
        if (part === undefined) break;
        yield part;
      }
    } finally {
      if (this.outcome === undefined) this.abandon();
    }
    if (this.outcome !== undefined && 'error' in this.outcome) throw this.outcome.error;
  }

  private begin(): void {
    if (this.started) return;
    this.started = true;
    if (this.signal?.aborted) return this.settle({ error: abortedError(this.signal) });
    this.signal?.addEventListener('abort', this.onAbort, { once: true });
    const listener: GenerationListener = {
      onPart: (part) => {
        this.parts.push(part);
        this.wake();
      },
      onDone: (results) => this.settle({ results }),
      onError: (error) => this.settle({ error }),
    };
    this.start(listener).then(
      (cancel) => {
        // Aborted while the prompt was tokenised: there was nothing to take back until now.
        if (this.outcome === undefined) this.cancel = cancel;
        else cancel();
      },
      (error: unknown) => this.settle({ error }),
    );
  }

  private readonly onAbort = (): void => {
    if (this.signal !== undefined) this.stop(abortedError(this.signal));
  };

  private abandon(): void {
    this.stop(new LozaError('ERR_LOZA_ABORTED', 'The loop over the generation was left early'));
  }

  private stop(error: LozaError): void {
    this.settle({ error });
    this.cancel?.();
  }

  private settle(outcome: Outcome): void {
    if (this.outcome !== undefined) return;
    this.outcome = outcome;
    this.signal?.removeEventListener('abort', this.onAbort);
    this.wake();
  }

  private change(): Promise<void> {
    return new Promise((resolve) => this.waiting.add(resolve));
  }

  private wake(): void {
    for (const resolve of this.waiting) resolve();
    this.waiting.clear();
  }
}
