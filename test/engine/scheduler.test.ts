import type { SchedulerLimits } from '../../lib/engine/scheduler';
import type { Sequence } from '../../lib/engine/sequence';
import { expectLozaError } from '../support/errors';
import { expectWhole, TestJob } from '../support/fake-runner';
import { Simulation, type SimulationOptions } from '../support/simulation';

/** New tokens of each job, step by step. */
function trace(simulation: Simulation, jobs: readonly TestJob[], steps = 1000): number[][] {
  const rows: number[][] = [];
  while (!simulation.isIdle && rows.length < steps) {
    const counts = simulation.step();
    rows.push(jobs.map((job) => counts.get(job) ?? 0));
  }
  return rows;
}

describe('what a step computes', () => {
  interface Case {
    name: string;
    limits: Partial<SchedulerLimits>;
    /** Prompt, new tokens. */
    jobs: [number, number][];
    steps: number[][];
  }
  const cases: Case[] = [
    {
      name: 'one token of everyone who decodes, beside a chunk of what is read',
      limits: { stepTokens: 128, chunkTokens: 128 },
      jobs: [
        [1, 4],
        [300, 2],
      ],
      steps: [
        [1, 128],
        [1, 128],
        [1, 44],
        [1, 1],
      ],
    },
    {
      name: 'several prompts, as many as there is room for beside those that decode',
      limits: { stepTokens: 128, chunkTokens: 64 },
      jobs: [
        [1, 2],
        [60, 1],
        [60, 1],
        [10, 1],
      ],
      steps: [
        [1, 60, 60, 0],
        [1, 0, 0, 10],
      ],
    },
    {
      name: 'prompts in turns: a short one is not stuck behind a long one',
      limits: { stepTokens: 100, chunkTokens: 100 },
      jobs: [
        [500, 1],
        [90, 1],
        [250, 1],
      ],
      steps: [
        [100, 0, 0],
        [0, 90, 0],
        [0, 0, 100],
        [100, 0, 0],
        [0, 0, 100],
        [100, 0, 0],
        [0, 0, 50],
        [100, 0, 0],
        [100, 0, 0],
      ],
    },
    {
      name: 'a chunk where those that decode take all of the budget',
      limits: { stepTokens: 2, chunkTokens: 2 },
      jobs: [
        [1, 3],
        [1, 3],
        [4, 1],
      ],
      steps: [
        [1, 1, 2],
        [1, 1, 2],
        [1, 1, 0],
      ],
    },
  ];
  test.each(cases)('$name', ({ limits, jobs: sizes, steps }) => {
    const simulation = new Simulation({ full: 32, ...limits });
    const jobs = sizes.map(([prompt, count], i) => new TestJob(prompt, count, i));
    simulation.submit(...jobs);
    expect(trace(simulation, jobs)).toEqual(steps);
    expectWhole(jobs);
    expect(simulation.runner.blocksInUse).toBe(0);
  });
});

test('a long prompt goes on while short ones keep coming, and no short one waits long', () => {
  const simulation = new Simulation({ full: 100, maxSequences: 4 });
  const long = new TestJob(8000, 1);
  simulation.submit(long);
  const waits: number[] = [];
  let chunks = 0;
  for (let i = 0; chunks < 62; i++) {
    const short = new TestJob(100, 1, i);
    simulation.submit(short);
    for (let wait = 1; !simulation.over.has(short); wait++) {
      chunks += simulation.step().has(long) ? 1 : 0;
      if (simulation.over.has(short)) waits.push(wait);
    }
  }
  expect(Math.max(...waits)).toBeLessThanOrEqual(2);
  expect(simulation.steps).toBeLessThanOrEqual(2 * 63);
  simulation.finish();
  expectWhole([long]);
});

describe('admission', () => {
  test('by what is to be read and some growth, not by what a job may need at most', () => {
    const simulation = new Simulation({ full: 64, streaming: 64 });
    // 40 blocks each at most; 2 for the prompt and 4 for growth.
    const jobs = [1, 2, 3, 4].map((seed) => new TestJob(200, 4920, seed));
    simulation.submit(...jobs);
    simulation.step();
    expect(simulation.scheduler.running.length).toBe(4);
    for (const job of jobs) simulation.cancel(job);
  });

  test('in the order the jobs came, though a later one would fit', () => {
    const simulation = new Simulation({ full: 12 });
    const jobs = [900, 800, 5].map((prompt, i) => new TestJob(prompt, 20, i));
    simulation.submit(...jobs);
    simulation.step();
    expect(simulation.scheduler.running.map(({ job }) => job)).toEqual([jobs[0]]);
    simulation.finish();
    expectWhole(jobs);
    expect(simulation.scheduler.preemptions).toBe(0);
  });

  test('a job that is too large alone is refused, with the numbers', async () => {
    const simulation = new Simulation({ full: 4 });
    const submit = () => simulation.submit(new TestJob(511, 3));
    await expectLozaError(submit, 'ERR_LOZA_CONTEXT_LENGTH', /513 tokens need 5/);
    simulation.submit(new TestJob(510, 3));
    simulation.finish();
  });

  test('jobs that wait cost nothing: neither they nor their prompts are looked at', () => {
    const simulation = new Simulation({ full: 12, maxSequences: 2 });
    let looks = 0;
    class Watched extends TestJob {
      override plan(...args: Parameters<TestJob['plan']>) {
        looks++;
        return super.plan(...args);
      }
    }
    const jobs = Array.from({ length: 20_000 }, (_, i) => new Watched(2, 50, i));
    for (const job of jobs)
      Object.defineProperty(job, 'reusable', { get: () => void looks++, enumerable: true });
    simulation.scheduler.submit(jobs[0]!);
    simulation.scheduler.submit(jobs[1]!);
    for (const job of jobs.slice(2)) simulation.scheduler.submit(job);
    looks = 0;
    for (let i = 0; i < 40; i++) {
      const { rows } = simulation.scheduler.schedule();
      const work = rows.map(({ running: { job, sequence }, count }) => ({
        ...{ sequence, count },
        ...job.plan(sequence, count),
      }));
      const outputs = simulation.runner.run(work);
      rows.forEach(({ running }, i) => running.job.receive(running.sequence, outputs[i]!));
    }
    expect(looks).toBe(2 + 2 * 40); // admitted, planned
    const from = performance.now();
    for (const job of jobs) simulation.scheduler.remove(job);
    expect(performance.now() - from).toBeLessThan(1000);
    expect([simulation.scheduler.waiting, simulation.runner.blocksInUse]).toEqual([0, 0]);
  });
});

describe('where blocks run out', () => {
  const run = (options: SimulationOptions, sizes: [number, number][]) => {
    const simulation = new Simulation(options);
    const jobs = sizes.map(([prompt, count], i) => new TestJob(prompt, count, i));
    simulation.submit(...jobs);
    const done: TestJob[] = [];
    while (!simulation.isIdle) {
      simulation.step();
      done.push(...jobs.filter((job) => simulation.over.has(job) && !done.includes(job)));
    }
    expectWhole(jobs);
    expect(simulation.runner.blocksInUse).toBe(0);
    return { simulation, jobs, done };
  };

  test.each([false, true])('the latest goes, and reads its tokens again; cache: %s', (cached) => {
    const { simulation, jobs, done } = run({ full: 16, cached }, [
      [100, 1200],
      [100, 1200],
      [100, 300],
    ]);
    expect(simulation.scheduler.preemptions).toBeGreaterThan(0);
    expect(done[0]).toBe(jobs[2]); // ended before the room was needed
    expect(done[1]).toBe(jobs[0]);
    // The first was never interrupted: one chunk, then a token a step.
    expect(simulation.steps).toBeLessThan(1 + 1200 + 10 + 1200 + 10);
  });

  test('a chunk waits, and what was read stays', () => {
    const simulation = new Simulation({ full: 9, chunkTokens: 64, stepTokens: 64 });
    const [first, second] = [new TestJob(1, 1000), new TestJob(200, 1, 2)];
    simulation.submit(first, second);
    trace(simulation, [first, second], 3);
    simulation.finish();
    expectWhole([first, second]);
  });

  test('a streaming pool that is too small for all is shared in the same way', () => {
    // Six blocks: two sequences with sink, window and a chunk are one too many.
    const { simulation } = run({ full: 100, streaming: 6 }, [
      [600, 300],
      [600, 300],
      [600, 300],
    ]);
    expect(simulation.steps).toBeGreaterThan(900);
  });

  test('a job that was interrupted while it was read is read from the start', () => {
    const { simulation } = run({ full: 24, chunkTokens: 1 }, [
      [10, 1200],
      [10, 1200],
      [1500, 1],
    ]);
    expect(simulation.scheduler.preemptions).toBeGreaterThan(0);
  });
});

describe('sequences that jobs keep', () => {
  /** Goes on with the sequence of the turn before. */
  class Turn extends TestJob {
    kept: Sequence | undefined;
    constructor(
      promptTokens: number,
      count: number,
      seed: number,
      readonly before?: Sequence,
    ) {
      super(promptTokens, count, seed);
      if (before !== undefined) Object.defineProperty(this, 'sequence', { value: before });
    }
    keep(sequence: Sequence): void {
      this.kept = sequence;
    }
  }

  const firstTurn = (simulation: Simulation) => {
    const job = new Turn(300, 1, 1);
    simulation.submit(job);
    simulation.finish();
    simulation.kept.add(job.kept!);
    return job.kept!;
  };

  test('hold their blocks until they are dropped', () => {
    const simulation = new Simulation({ full: 12 });
    const kept = firstTurn(simulation);
    expect(simulation.runner.blocksInUse).toBe(6);
    simulation.scheduler.drop(kept);
    expect(simulation.runner.blocksInUse).toBe(0);
  });

  test('are where the next turn goes on', () => {
    const simulation = new Simulation({ full: 12 });
    const kept = firstTurn(simulation);
    kept.append([7, 8, 9]);
    const next = new Turn(303, 1, 1, kept);
    simulation.jobs.push(next);
    simulation.scheduler.submit(next);
    const { rows } = simulation.scheduler.schedule();
    expect(rows.map(({ count }) => count)).toEqual([4]); // the token it ended with, and three
    simulation.scheduler.remove(next);
    expect(simulation.runner.blocksInUse).toBe(0);
  });

  test('give way to whoever needs their blocks, and are read again', () => {
    const simulation = new Simulation({ full: 6 });
    const kept = firstTurn(simulation);
    const other = new TestJob(700, 10, 2);
    simulation.submit(other);
    simulation.finish();
    expectWhole([other]);
    expect([kept.computed, simulation.scheduler.preemptions]).toEqual([0, 0]);
  });

  test.each(['waits', 'is the first that waits', 'runs'])('a turn that %s is cancelled', (when) => {
    const simulation = new Simulation({ full: 12, cached: true, maxSequences: 1 });
    const kept = firstTurn(simulation);
    const [busy, other] = [new TestJob(5, 40, 3), new TestJob(5, 40, 4)];
    const next = new Turn(303, 40, 1, kept);
    if (when === 'waits') simulation.submit(busy, other);
    if (when === 'is the first that waits') simulation.submit(busy);
    simulation.scheduler.submit(next);
    simulation.jobs.push(next);
    simulation.step();
    simulation.cancel(next);
    for (const job of [busy, other]) simulation.cancel(job);
    expect(simulation.runner.blocksInUse).toBe(0);
  });
});

describe('prompts that begin alike and come together', () => {
  /** Jobs whose prompts have so many tokens of the first one's, and then their own. */
  const alike = (sizes: [shared: number, prompt: number][]) => {
    const whole = new TestJob(2000, 1, 99).prompt;
    return sizes.map(([shared, prompt], i) => {
      const job = new TestJob(prompt, 2, i + 1);
      job.prompt.set(whole.subarray(0, shared));
      return job;
    });
  };
  interface Case {
    name: string;
    sizes: [number, number][];
    /** Tokens of each prompt that are computed: the others' blocks are taken over. */
    read: number[];
    limits?: Partial<SchedulerLimits>;
  }
  const cases: Case[] = [
    {
      name: 'the same ones are read once, but for the last block',
      sizes: [
        [500, 500],
        [500, 500],
        [500, 500],
      ],
      read: [500, 116, 116],
    },
    {
      name: 'those that part later read what is their own',
      sizes: [
        [1500, 1500],
        [1100, 1300],
        [700, 800],
      ],
      read: [1500, 1300 - 1024, 800 - 640],
    },
    {
      name: 'where chunks are long, too',
      sizes: [
        [1500, 1500],
        [1100, 1300],
        [700, 800],
      ],
      read: [1500, 1300 - 1024, 800 - 640],
      limits: { stepTokens: 512, chunkTokens: 512 },
    },
    {
      name: 'what has little in common does not wait',
      sizes: [
        [1000, 1000],
        [300, 700],
      ],
      read: [1000, 700],
    },
  ];

  test.each(cases)('$name', ({ sizes, read, limits }) => {
    const simulation = new Simulation({ full: 100, cached: true, ...limits });
    const jobs = alike(sizes);
    simulation.submit(...jobs);
    const steps = trace(simulation, jobs);
    const sums = jobs.map((_, i) => steps.reduce((sum, step) => sum + step[i]!, 0));
    expect(sums).toEqual(read.map((count) => count + 1)); // the first of two new tokens is read
    expectWhole(jobs);
    expect(simulation.runner.blocksInUse).toBe(0);
  });

  test('who comes while the first is read waits too, and others do not wait for them', () => {
    const simulation = new Simulation({ full: 100, cached: true });
    const [first, second] = alike([
      [1500, 1500],
      [1500, 1500],
    ]) as [TestJob, TestJob];
    const short = new TestJob(100, 1, 7);
    simulation.submit(first);
    trace(simulation, [first], 4);
    simulation.submit(second, short);
    const steps = trace(simulation, [first, second, short]);
    expect(steps.findIndex((step) => step[2]! > 0)).toBeLessThanOrEqual(1);
    expect(steps.reduce((sum, step) => sum + step[1]!, 0)).toBe(1500 - 11 * 128 + 1);
    expectWhole([first, second, short]);
  });

  test.each(['is cancelled', 'fails'])('the next reads for the others where one %s', (how) => {
    const simulation = new Simulation({ full: 100, cached: true });
    const jobs = alike([1, 2, 3].map(() => [1500, 1500]));
    const [first, ...others] = jobs as [TestJob, TestJob, TestJob];
    simulation.submit(...jobs);
    trace(simulation, jobs, 3);
    if (how === 'fails') simulation.step(true);
    else simulation.cancel(first);
    const steps = trace(simulation, others);
    const sums = others.map((_, i) => steps.reduce((sum, step) => sum + step[i]!, 0));
    expect(sums).toEqual([1500 - 3 * 128 + 1, 1500 - 11 * 128 + 1]);
    expectWhole(others);
    expect(simulation.runner.blocksInUse).toBe(0);
  });

  test('one that waits can be cancelled, or make room for others', () => {
    const simulation = new Simulation({ full: 14, cached: true, growthTokens: 0 });
    const writer = new TestJob(10, 600, 50);
    const jobs = alike([1, 2, 3].map(() => [1000, 1000]));
    simulation.submit(writer, ...jobs);
    trace(simulation, jobs, 2);
    simulation.cancel(jobs[1]!);
    simulation.finish();
    expectWhole([writer, jobs[0]!, jobs[2]!]);
    expect(simulation.runner.blocksInUse).toBe(0);
  });
});
