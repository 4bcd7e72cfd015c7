import type { StepOutput, StepWork } from '../runner/model-runner';
import type { Sequence } from './sequence';

/** A request as the engine sees it. */
export interface Job {
  /** Tokens to read, before anything is generated. */
  readonly prompt: Int32Array;
  /** Positions it may need at most: its KV budget. */
  readonly maxTokens: number;
  /**
   * Goes on with this sequence, which keeps its blocks when the job ends or is cancelled; `prompt`
   * plays no part then. It loses them where the job fails, or has to make room for others.
   */
  readonly continues?: Sequence | undefined;
  /** Tokens at the start that need not be computed if the cache has them. Default: all but the last. */
  readonly reusable?: number | undefined;
  /** What to do with the next `count` tokens of the sequence. */
  plan(sequence: Sequence, count: number): Omit<StepWork, 'sequence' | 'count'>;
  /** Whether `receive` will say that this token is the last; more reasons may show only there. */
  stopsAt?(token: number): boolean;
  /**
   * The step is done; true when the job is. A job that had to make room for others sees its tokens
   * again, from the first on: outputs that it has had are not asked for twice.
   */
  receive(sequence: Sequence, output: StepOutput): boolean;
  fail(error: unknown): void;
}
