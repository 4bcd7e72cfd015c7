import type { StepOutput, StepWork } from '../runner/model-runner';
import type { Sequence } from './sequence';

/** A request as the engine sees it. */
export interface Job {
  /** Tokens to read, before anything is generated. */
  readonly prompt: Int32Array;
  /** Positions it may need at most: its KV budget. */
  readonly maxTokens: number;
  /** Goes on with this sequence, whose tokens begin with the prompt; the engine takes it over. */
  readonly sequence?: Sequence | undefined;
  /** Nothing is wanted of this many first tokens but their keys (default: of all but the last). */
  readonly reusable?: number;
  /** What to do with the next `count` tokens of the sequence. */
  plan(sequence: Sequence, count: number): Omit<StepWork, 'sequence' | 'count'>;
  /** Whether `receive` will say that this token is the last; more reasons may show only there. */
  stopsAt?(token: number): boolean;
  /** The step is done; true when the job is. */
  receive(sequence: Sequence, output: StepOutput): boolean;
  fail(error: unknown): void;
  /** Takes over the sequence of a job that is done, and releases it in its time. */
  keep?(sequence: Sequence): void;
}
