import { LozaError } from '../errors';
import type { LayerGroup } from '../kv/layer-group';
import type { ModelRunner, StepOutput, StepWork } from '../runner/model-runner';
import type { Job } from './job';
import { Sequence } from './sequence';

export interface EngineLimits {
  /** New tokens of a step that belong to prompts. */
  chunkTokens: number;
  /** Sequences in flight. */
  maxSequences: number;
}

interface Running {
  job: Job;
  sequence: Sequence;
}

/**
 * Serves jobs together: every step decodes one token of each sequence that has been read and reads
 * one chunk of the prompts that have not, oldest first. A job starts when the KV blocks it may need
 * at most are free, so none runs out on the way.
 */
export class Engine {
  private readonly waiting: Job[] = [];
  private running: Running[] = [];
  private readonly reserved = new Map<LayerGroup, number>();
  private loop: Promise<void> | undefined;
  private readonly cancelled = new Set<Job>();
  private closed = false;

  constructor(
    private readonly runner: ModelRunner,
    private readonly limits: EngineLimits,
  ) {}

  /** Sequences that hold KV blocks now. */
  get sequences(): readonly Sequence[] {
    return this.running.map(({ sequence }) => sequence);
  }

  submit(job: Job): void {
    if (this.closed) throw closedError();
    const group = this.runner.groups.find((one) => this.needed(one, job) > one.pool.capacity);
    if (group !== undefined) {
      const capacity = group.pool.capacity;
      throw new LozaError(
        'ERR_LOZA_CONTEXT_LENGTH',
        `${job.maxTokens} tokens need ${this.needed(group, job)} KV blocks of the ${group.kind} attentions; the model has ${capacity}`,
        { value: job.maxTokens, hint: 'Load the model with a larger maxTokens' },
      );
    }
    this.waiting.push(job);
    this.loop ??= this.run();
  }

  /** Takes a job out; its memory is free at the latest when the step that is running ends. */
  cancel(job: Job): void {
    const at = this.waiting.indexOf(job);
    if (at >= 0) this.waiting.splice(at, 1);
    else if (this.running.some((running) => running.job === job)) this.cancelled.add(job);
  }

  /** Fails every job and resolves when no step is running any more. */
  async close(): Promise<void> {
    this.closed = true;
    for (const job of this.waiting.splice(0)) fail(job, closedError());
    for (const { job } of this.running) {
      fail(job, closedError());
      this.cancelled.add(job);
    }
    await this.loop;
  }

  private async run(): Promise<void> {
    // One turn of the event loop, so that jobs submitted together start together.
    await Promise.resolve();
    while (true) {
      this.finish(({ job }) => this.cancelled.delete(job));
      this.admit();
      if (this.running.length === 0) break;
      await this.step(this.schedule());
    }
    this.cancelled.clear();
    this.loop = undefined;
  }

  private admit(): void {
    while (this.running.length < this.limits.maxSequences) {
      const job = this.waiting[0];
      if (job === undefined) return;
      const { groups } = this.runner;
      const fits = (group: LayerGroup) =>
        this.held(group) + this.needed(group, job) <= group.pool.capacity;
      if (!groups.every(fits)) return;
      this.waiting.shift();
      for (const group of groups) {
        this.reserved.set(group, this.held(group) + this.needed(group, job));
      }
      this.running.push({ job, sequence: new Sequence(job.prompt, groups) });
    }
  }

  /**
   * A prompt is read in whole chunks or waits for the next step: where it is cut depends on nothing
   * else, so that a sequence gets the same bits in any company.
   */
  private schedule(): { running: Running; work: StepWork }[] {
    let budget = this.limits.chunkTokens;
    return this.running.flatMap((running) => {
      const { job, sequence } = running;
      const unread = sequence.tokens.length - sequence.computed;
      const count = Math.min(unread, this.limits.chunkTokens);
      if (count > 1 && count > budget) return [];
      try {
        const work = { sequence, count, ...job.plan(sequence, count) };
        if (count > 1) budget -= count;
        return { running, work };
      } catch (error) {
        fail(job, error);
        this.cancelled.add(job);
        return [];
      }
    });
  }

  private async step(batch: readonly { running: Running; work: StepWork }[]): Promise<void> {
    if (batch.length === 0) return;
    const done = new Set<Running>();
    try {
      const outputs = await this.runner.step(batch.map(({ work }) => work));
      batch.forEach(({ running }, i) => {
        if (this.cancelled.has(running.job)) return;
        if (deliver(running, outputs[i] ?? {})) done.add(running);
      });
    } catch (error) {
      for (const { running } of batch) {
        fail(running.job, error);
        done.add(running);
      }
    }
    this.finish((running) => done.has(running));
  }

  private finish(isDone: (running: Running) => boolean): void {
    this.running = this.running.filter((running) => {
      if (!isDone(running)) return true;
      running.sequence.release();
      for (const group of this.runner.groups) {
        this.reserved.set(group, this.held(group) - this.needed(group, running.job));
      }
      return false;
    });
  }

  /** Blocks promised to running jobs. */
  private held(group: LayerGroup): number {
    return this.reserved.get(group) ?? 0;
  }

  private needed(group: LayerGroup, job: Job): number {
    return group.blocksNeeded(job.maxTokens, this.limits.chunkTokens);
  }
}

/** Gives a job its output; true when it is done. A job that throws fails alone. */
function deliver({ job, sequence }: Running, output: StepOutput): boolean {
  try {
    return job.receive(sequence, output);
  } catch (error) {
    fail(job, error);
    return true;
  }
}

/** Tells a job; what it throws in turn is nobody's to handle and must not end the loop. */
function fail(job: Job, error: unknown): void {
  try {
    job.fail(error);
  } catch {
    // The job itself is broken, and over in any case.
  }
}

export function closedError(): LozaError {
  return new LozaError('ERR_LOZA_CLOSED', 'The model is closed', {
    hint: 'Load it again to go on',
  });
}
