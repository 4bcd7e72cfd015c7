import type { StepOutput } from '../runner/model-runner';
import type { Job } from './job';
import type { Sequence } from './sequence';

/** Reads tokens and collects the logits of some positions, ascending. */
export class ScoreJob implements Job {
  readonly maxTokens: number;
  readonly logits: Float32Array;
  readonly done: Promise<void>;
  private next = 0; // of `positions`, the first whose logits are not there
  private resolve!: () => void;
  private reject!: (error: unknown) => void;

  constructor(
    readonly prompt: Int32Array,
    private readonly positions: readonly number[],
    private readonly vocabSize: number,
    private readonly onProgress: ((tokens: number) => void) | undefined,
  ) {
    this.maxTokens = prompt.length;
    this.logits = new Float32Array(positions.length * vocabSize);
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }

  /** The cache may have everything before the first position that is wanted yet. */
  get reusable(): number {
    return this.positions[this.next] ?? this.prompt.length - 1;
  }

  plan({ computed }: Sequence, count: number): { score: number[] } {
    const { positions, next } = this;
    const score: number[] = [];
    // After it made room for others it reads tokens again whose logits are there.
    for (let i = next; i < positions.length; i++) {
      const offset = (positions[i] as number) - computed;
      if (offset >= count) break;
      score.push(offset);
    }
    return { score };
  }

  receive(sequence: Sequence, { logits }: StepOutput): boolean {
    if (logits !== undefined) {
      this.logits.set(logits, this.next * this.vocabSize);
      this.next += logits.length / this.vocabSize;
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
