import type { StepOutput } from '../runner/model-runner';
import type { Job } from './job';
import type { Sequence } from './sequence';

/** Reads tokens and collects the logits of some positions, ascending. */
export class ScoreJob implements Job {
  readonly maxTokens: number;
  readonly reusable: number;
  readonly logits: Float32Array;
  readonly done: Promise<void>;
  private rows = 0;
  private resolve!: () => void;
  private reject!: (error: unknown) => void;

  constructor(
    readonly prompt: Int32Array,
    private readonly positions: readonly number[],
    vocabSize: number,
    private readonly onProgress: ((tokens: number) => void) | undefined,
  ) {
    this.maxTokens = prompt.length;
    this.reusable = Math.min(...positions);
    this.logits = new Float32Array(positions.length * vocabSize);
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }

  plan({ computed }: Sequence, count: number): { score: number[] } {
    const within = this.positions.filter((p) => p >= computed && p < computed + count);
    return { score: within.map((position) => position - computed) };
  }

  receive(sequence: Sequence, output: StepOutput): boolean {
    if (output.logits !== undefined) {
      this.logits.set(output.logits, this.rows);
      this.rows += output.logits.length;
    }
    this.onProgress?.(sequence.computed);
    if (sequence.computed < this.prompt.length) return false;
    this.resolve();
    return true;
  }

  fail(error: unknown): void {
    this.reject(error);
  }
}
