import type { StepOutput, StepWork } from '../runner/model-runner';
import type { Sequence } from './sequence';

/** A request as the engine sees it. */
export interface Job {
  /** Tokens to read, before anything is generated. */
  readonly prompt: Int32Array;
  /** Positions it may need at most: its KV budget. */
  readonly maxTokens: number;
  /** What to do with the next `count` tokens of the sequence. */
  plan(sequence: Sequence, count: number): Omit<StepWork, 'sequence' | 'count'>;
  /** Whether `receive` will say that this token is the last; more reasons may show only there. */
  stopsAt?(token: number): boolean;
  /** The step is done; true when the job is. */
  receive(sequence: Sequence, output: StepOutput): boolean;
  fail(error: unknown): void;
}
