import { LozaError } from '../errors';
import type { LayerGroup } from '../kv/layer-group';
import type { ModelRunner, StepInFlight, StepOutput, StepWork } from '../runner/model-runner';
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
  /** It has ended and its blocks are free; a step that is still on its way may have a row of it. */
  over: boolean;
}

interface Planned {
  running: Running;
  work: StepWork;
}

/** A step that was enqueued, and who takes part in it. */
interface Flight {
  batch: readonly Running[];
  step: StepInFlight;
}

type Landed = { outputs: StepOutput[] } | { error: unknown };

/**
 * Serves jobs together: every step decodes one token of each sequence that has been read and reads
 * one chunk of the prompts that have not, oldest first. A job starts when the KV blocks it may need
 * at most are free, so none runs out on the way.
 *
 * While the same sequences decode, the next step is enqueued before the tokens of this one are read:
 * the device does not wait for the host. That a token was the last one shows when the next is on its
 * way already, or the next two where the text decides; those are dropped.
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

  /** Takes a job out; its memory is free at the latest when the next of the running steps ends. */
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
    let flight = this.takeOff();
    let next = this.follow(flight);
    while (flight !== undefined) {
      const landed = await land(flight);
      // First of all, so that the device has work while the host looks at the tokens.
      const later = goOn(flight, landed) ? this.follow(next) : undefined;
      this.deliver(flight, landed);
      flight = next ?? this.takeOff();
      next = next === undefined ? this.follow(flight) : later;
    }
    this.cancelled.clear();
    this.loop = undefined;
  }

  /** Starts a step of everyone whose tokens are known; undefined when nobody is left. */
  private takeOff(): Flight | undefined {
    while (true) {
      this.finish(({ job }) => this.cancelled.delete(job));
      this.admit();
      if (this.running.length === 0) return undefined;
      const planned = this.schedule();
      if (planned.length > 0) return this.start(planned);
    }
  }

  /** Starts the step behind one that is on its way, if it has the same sequences. */
  private follow(flight: Flight | undefined): Flight | undefined {
    const { running } = this;
    if (!flight?.step.canBeFollowed || this.cancelled.size > 0 || this.admissible())
      return undefined;
    if (running.length !== flight.batch.length) return undefined;
    if (running.some((one, i) => one !== flight.batch[i])) return undefined;
    if (running.some(({ job, sequence }) => sequence.computed >= job.maxTokens)) return undefined;
    try {
      return this.start(
        running.map((one) => plan(one, 1)),
        flight,
      );
    } catch {
      return undefined; // a job that cannot plan is told when its turn comes
    }
  }

  private admit(): void {
    const { groups, prefixCache } = this.runner;
    for (let job = this.admissible(); job !== undefined; job = this.admissible()) {
      this.waiting.shift();
      for (const group of groups) {
        this.reserved.set(group, this.held(group) + this.needed(group, job));
      }
      const sequence = job.sequence ?? new Sequence(job.prompt, groups, prefixCache);
      sequence.reuse(job.reusable);
      this.running.push({ job, sequence, over: false });
    }
  }

  /** The job that has waited longest, if there is room for it. */
  private admissible(): Job | undefined {
    const job = this.waiting[0];
    if (job === undefined || this.running.length >= this.limits.maxSequences) return undefined;
    const fits = (group: LayerGroup) =>
      this.held(group) + this.needed(group, job) <= group.pool.capacity;
    return this.runner.groups.every(fits) ? job : undefined;
  }

  /**
   * A prompt is read in whole chunks or waits for the next step: where it is cut depends on nothing
   * else, so that a sequence gets the same bits in any company.
   */
  private schedule(): Planned[] {
    let budget = this.limits.chunkTokens;
    return this.running.flatMap((running) => {
      const { job, sequence } = running;
      const unread = sequence.tokens.length - sequence.computed;
      const count = Math.min(unread, this.limits.chunkTokens);
      if (count > 1 && count > budget) return [];
      try {
        const planned = plan(running, count);
        if (count > 1) budget -= count;
        return planned;
      } catch (error) {
        fail(job, error);
        this.cancelled.add(job);
        return [];
      }
    });
  }

  /** Never throws: a step that cannot be enqueued is one that fails, in its turn. */
  private start(planned: readonly Planned[], after?: Flight): Flight {
    const batch = planned.map(({ running }) => running);
    const work = planned.map(({ work }) => work);
    let step: StepInFlight;
    try {
      step = this.runner.start(work, after?.step);
    } catch (error) {
      step = { outputs: rejected(error), canBeFollowed: false };
    }
    step.outputs.catch(() => {}); // told when it is waited for, after the step before it
    return { batch, step };
  }

  private deliver({ batch }: Flight, landed: Landed): void {
    const done = new Set<Running>();
    batch.forEach((running, i) => {
      if (running.over) return;
      if ('error' in landed) {
        fail(running.job, landed.error);
        done.add(running);
      } else if (!this.cancelled.has(running.job)) {
        if (receive(running, landed.outputs[i] ?? {})) done.add(running);
      }
    });
    this.finish((running) => done.has(running) || this.cancelled.delete(running.job));
  }

  private finish(isDone: (running: Running) => boolean): void {
    this.running = this.running.filter((running) => {
      if (!isDone(running)) return true;
      running.over = true;
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

async function rejected(error: unknown): Promise<never> {
  await Promise.resolve();
  throw error;
}

async function land({ step }: Flight): Promise<Landed> {
  try {
    return { outputs: await step.outputs };
  } catch (error) {
    return { error };
  }
}

/** Whether nobody stops at a token of the step, as far as the tokens alone tell. */
function goOn({ batch }: Flight, landed: Landed): boolean {
  if ('error' in landed) return false;
  return batch.every(({ job }, i) => {
    const sampled = landed.outputs[i]?.sampled;
    return sampled === undefined || job.stopsAt?.(sampled.token) !== true;
  });
}

function plan(running: Running, count: number): Planned {
  const { job, sequence } = running;
  return { running, work: { sequence, count, ...job.plan(sequence, count) } };
}

/** Gives a job its output; true when it is done. A job that throws fails alone. */
function receive({ job, sequence }: Running, output: StepOutput): boolean {
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
