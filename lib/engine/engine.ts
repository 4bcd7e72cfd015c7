import { LozaError } from '../errors';
import type { ModelRunner, StepInFlight, StepOutput, StepWork } from '../runner/model-runner';
import type { Job } from './job';
import { Scheduler, type Row, type Running, type SchedulerLimits } from './scheduler';
import type { Sequence } from './sequence';

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

/** How many jobs there are, and how often one had to make room for others. */
export interface EngineLoad {
  running: number;
  waiting: number;
  preemptions: number;
}

/**
 * Serves jobs together: enqueues the steps that the scheduler decides on, and hands out what comes
 * of them.
 *
 * While the same sequences decode, the next step is enqueued before the tokens of this one are read:
 * the device does not wait for the host. That a token was the last one shows when the next is on its
 * way already, or the next two where the text decides; those are dropped.
 */
export class Engine {
  private readonly scheduler: Scheduler;
  private loop: Promise<void> | undefined;
  private closed = false;

  constructor(
    private readonly runner: ModelRunner,
    limits: SchedulerLimits,
  ) {
    this.scheduler = new Scheduler(runner, limits);
  }

  /** Sequences in flight. */
  get sequences(): readonly Sequence[] {
    return this.scheduler.running.map(({ sequence }) => sequence);
  }

  get load(): EngineLoad {
    const { running, waiting, preemptions } = this.scheduler;
    return { running: running.length, waiting, preemptions };
  }

  submit(job: Job): void {
    if (this.closed) throw closedError();
    this.scheduler.submit(job);
    this.loop ??= this.run();
  }

  /**
   * Takes a job out, and frees its memory at once: a step that is on its way comes before all that
   * could use it next.
   */
  cancel(job: Job): void {
    this.scheduler.remove(job);
  }

  /** Takes over a sequence that no job works on; others may take its blocks. */
  keep(sequence: Sequence): void {
    this.scheduler.keep(sequence);
  }

  /** Takes back a sequence that is kept. */
  drop(sequence: Sequence): void {
    this.scheduler.drop(sequence);
  }

  /** Fails every job and resolves when no step is running any more. */
  async close(): Promise<void> {
    this.closed = true;
    for (const job of this.scheduler.clear()) fail(job, closedError());
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
    this.loop = undefined;
  }

  /** Starts a step of everyone whose tokens are known; undefined when nobody is left. */
  private takeOff(): Flight | undefined {
    while (true) {
      const { rows, failed } = this.scheduler.schedule();
      for (const { job, error } of failed) fail(job, error);
      const planned = rows.flatMap((row) => this.planAlone(row));
      if (planned.length > 0) return this.start(planned);
      if (rows.length === 0 && failed.length === 0) return undefined;
    }
  }

  /** Starts the step behind one that is on its way, if it has the same sequences. */
  private follow(flight: Flight | undefined): Flight | undefined {
    if (!flight?.step.canBeFollowed || !this.scheduler.follows(flight.batch)) return undefined;
    try {
      return this.start(
        flight.batch.map((running) => plan({ running, count: 1 })),
        flight,
      );
    } catch {
      return undefined; // a job that cannot plan is told when its turn comes
    }
  }

  /** A job that was cancelled meanwhile, or that cannot plan, leaves the others alone. */
  private planAlone(row: Row): Planned[] {
    const { running } = row;
    if (running.state !== 'running') return [];
    try {
      return [plan(row)];
    } catch (error) {
      this.scheduler.end(running);
      fail(running.job, error);
      return [];
    }
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
    if ('error' in landed) {
      this.runner.prefixCache?.host?.clear(); // copies behind the step were not made
      const lost = batch.filter(({ state }) => state !== 'over');
      for (const running of lost) this.scheduler.end(running);
      for (const { job } of lost) fail(job, landed.error);
      return;
    }
    batch.forEach((running, i) => {
      if (running.state !== 'over') this.receive(running, landed.outputs[i] ?? {});
    });
  }

  /** Gives a job its output. A job that throws fails alone. */
  private receive(running: Running, output: StepOutput): void {
    const { job, sequence } = running;
    try {
      if (job.receive(sequence, output)) this.scheduler.end(running, true);
    } catch (error) {
      this.scheduler.end(running);
      fail(job, error);
    }
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

function plan({ running, count }: Row): Planned {
  const { job, sequence } = running;
  return { running, work: { sequence, count, ...job.plan(sequence, count) } };
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
