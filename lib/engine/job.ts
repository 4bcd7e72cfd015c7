import type { StepOutput, StepWork } from '../runner/model-runner';
import type { Sequence } from './sequence';

/** A request as the engine sees it. */
export interface Job {
  /** Tokens to read, before anything is generated. */
  readonly prompt: Int32Array;
  /** Positions it may need at most: its KV budget. */
  readonly maxTokens: number;
  /**
   * Goes on with this sequence, whose tokens begin with the prompt; the engine takes it over. Where
   * others need its blocks, before or while it runs, it loses them and is read again.
   */
  readonly sequence?: Sequence | undefined;
  /** Nothing is wanted of this many first tokens but their keys (default: of all but the last). */
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
  /**
   * The job is done, and its sequence stays with the engine, until a job goes on with it or it is
   * dropped; others may take its blocks meanwhile. Without this it is released.
   */
  keep?(sequence: Sequence): void;
}
