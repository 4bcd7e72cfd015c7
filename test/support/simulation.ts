import { Scheduler, type Running, type SchedulerLimits } from '../../lib/engine/scheduler';
import type { Sequence } from '../../lib/engine/sequence';
import type { StepOutput } from '../../lib/runner/model-runner';
import { FakeRunner, TestJob } from './fake-runner';

export interface SimulationOptions extends Partial<SchedulerLimits> {
  full: number;
  streaming?: number;
  cached?: boolean;
  /** Blocks of each group that the host has room for. */
  host?: number;
  /** Of the streaming group, if not as many. */
  hostWindows?: number;
}

/** Runs what the scheduler decides, step by step, and checks what must be true of every step. */
export class Simulation {
  readonly runner: FakeRunner;
  readonly scheduler: Scheduler;
  readonly limits: SchedulerLimits;
  readonly jobs: TestJob[] = []; // in the order they came
  readonly over = new Set<TestJob>();
  /** Sequences that jobs kept, and that were not dropped. */
  readonly kept = new Set<Sequence>();
  steps = 0;
  /** Steps since the oldest became the oldest, or was computed last. */
  private oldest: { job: TestJob; steps: number } | undefined;

  constructor(options: SimulationOptions) {
    const { full, streaming = full, cached = false, host = 0, hostWindows, ...limits } = options;
    this.runner = new FakeRunner(full, streaming, cached, host, hostWindows);
    this.limits = { stepTokens: 128, chunkTokens: 128, maxSequences: 8, ...limits };
    this.scheduler = new Scheduler(this.runner, this.limits);
  }

  submit(...jobs: TestJob[]): void {
    for (const job of jobs) this.scheduler.submit(job);
    this.jobs.push(...jobs);
  }

  cancel(job: TestJob): void {
    this.over.add(job);
    this.scheduler.remove(job);
  }

  get isIdle(): boolean {
    return this.scheduler.running.length + this.scheduler.waiting === 0;
  }

  /** One step; what it computed, by job. `fails`: the device gives up on it. */
  step(fails = false): Map<TestJob, number> {
    const { rows, failed } = this.scheduler.schedule();
    for (const { job, error } of failed) {
      job.fail(error);
      this.over.add(job as TestJob);
    }
    const counts = new Map(rows.map(({ running, count }) => [running.job as TestJob, count]));
    this.check(counts);
    this.steps++;
    const work = rows.map(({ running: { job, sequence }, count }) => ({
      ...{ sequence, count },
      ...job.plan(sequence, count),
    }));
    const outputs = fails ? undefined : this.runner.run(work);
    rows.forEach(({ running }, i) => this.deliver(running, outputs?.[i]));
    return counts;
  }

  /** Steps until nothing is left; how many. */
  finish(most = 100_000): number {
    const from = this.steps;
    while (!this.isIdle) {
      this.step();
      if (this.steps - from > most) throw new Error(`not done after ${most} steps`);
    }
    return this.steps - from;
  }

  private deliver(running: Running, output: StepOutput | undefined): void {
    const job = running.job as TestJob;
    if (running.state === 'over') return;
    if (output === undefined) {
      this.scheduler.end(running);
      job.fail(new Error('the step failed'));
    } else if (job.receive(running.sequence, output)) this.scheduler.end(running, true);
    if ((running.state as string) === 'over') this.over.add(job);
  }

  private check(counts: ReadonlyMap<TestJob, number>): void {
    const { running } = this.scheduler;
    const { stepTokens, chunkTokens, maxSequences } = this.limits;
    must(running.length <= maxSequences, 'no more sequences than allowed');
    const all = [...counts.values()];
    const decoding = all.filter((count) => count === 1).length;
    const tokens = all.reduce((sum, count) => sum + count, 0);
    must(tokens <= Math.max(stepTokens, decoding + chunkTokens), 'the budget is kept');
    must(all.length > 0 || running.length === 0, 'something is computed');
    for (const { job, sequence } of running) {
      const unread = sequence.tokens.length - sequence.computed;
      const count = counts.get(job as TestJob);
      must(unread > 1 || count === 1, 'everyone decodes in every step');
      if (count === undefined) continue;
      const isCut = (sequence.computed + count) % chunkTokens === 0 || count === unread;
      must(isCut && count <= chunkTokens, 'prompts are cut at the same places in any company');
    }
    this.checkOrder(counts);
    this.checkBlocks();
  }

  /** First come, first served: nobody runs who came after someone who waits, and the oldest goes on. */
  private checkOrder(counts: ReadonlyMap<TestJob, number>): void {
    const alive = this.jobs.filter((job) => !this.over.has(job));
    const isNext = this.scheduler.running.every(({ job }, i) => job === alive[i]);
    must(isNext, 'those that came first run');
    const [job] = alive;
    if (job === undefined) return;
    if (this.oldest?.job !== job || counts.has(job)) this.oldest = { job, steps: 0 };
    else must(++this.oldest.steps <= this.limits.maxSequences, 'the oldest goes on');
  }

  /** Every block belongs to the sequences that run, and without a cache to one of them. */
  private checkBlocks(): void {
    for (const group of this.runner.groups) {
      const ids = new Set<number>();
      let held = 0;
      const running = this.scheduler.running.map(({ sequence }) => sequence);
      for (const sequence of new Set([...running, ...this.kept])) {
        const blocks = sequence.blocksOf(group);
        for (let i = 0; i < blocks.length; i++) {
          const block = blocks.block(i);
          if (block < 0) continue;
          ids.add(block);
          held++;
        }
      }
      must(ids.size === group.pool.inUse, 'no block is lost');
      must(this.runner.prefixCache !== undefined || held === ids.size, 'no block has two owners');
    }
  }
}

/** `expect` for what is checked many thousand times. */
function must(condition: boolean, what: string): void {
  if (!condition) throw new Error(`It must be so that ${what}`);
}
