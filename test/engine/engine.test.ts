import fc from 'fast-check';
import type { Engine } from '../../lib/engine/engine';
import type { Job } from '../../lib/engine/job';
import { ScoreJob } from '../../lib/engine/score-job';
import { blocksFor } from '../../lib/kv/layer-group';
import { expectLozaError } from '../support/errors';
import {
  expectWhole,
  FakeRunner,
  idle,
  makeEngine,
  submitAll,
  TestJob,
  turn,
} from '../support/fake-runner';

const countOf = (runner: FakeRunner, step: number, job: TestJob) =>
  runner.steps[step]?.find(({ sequence }) => sequence === job.seen)?.count ?? 0;

test('a job alone gives the tokens of the model', async () => {
  const runner = new FakeRunner(16);
  const engine = makeEngine(runner);
  const job = new TestJob(300, 300);
  engine.submit(job);
  await job.settled;
  expect(job.tokens).toEqual(job.expected);
  expect(runner.steps.length).toBe(Math.ceil(300 / 64) + 299);
  await idle(engine, runner);
});

test('every sequence that was read gets a token each step while long prompts are read', async () => {
  const runner = new FakeRunner(64);
  const engine = makeEngine(runner);
  const short = [10, 20, 1, 2].map((tokens, i) => new TestJob(tokens, 60, i));
  submitAll(engine, short);
  while (short.some((job) => job.tokens.length < 2)) await new Promise(setImmediate);
  const from = runner.steps.length;
  const long = [900, 500].map((tokens, i) => new TestJob(tokens, 2, 10 + i));
  submitAll(engine, long);
  await Promise.all(long.map((job) => job.settled));
  const reading = runner.steps.slice(from + 1, from + Math.floor(1400 / 64));
  expect(reading.length).toBeGreaterThan(15);
  reading.forEach((_, i) => {
    for (const job of short) expect(countOf(runner, from + 1 + i, job)).toBe(1);
  });
  await Promise.all(short.map((job) => job.settled));
  for (const job of [...short, ...long]) expect(job.tokens).toEqual(job.expected);
  await idle(engine, runner);
});

test('prompts take turns, and share what a step has room for', async () => {
  const runner = new FakeRunner(64);
  const engine = makeEngine(runner, { chunkTokens: 100 });
  const jobs = [150, 30, 400, 90].map((tokens, i) => new TestJob(tokens, 1, i));
  submitAll(engine, jobs);
  await Promise.all(jobs.map((job) => job.settled));
  const chunks = runner.steps.map((_, step) => jobs.map((job) => countOf(runner, step, job)));
  expect(chunks).toEqual([
    [100, 0, 0, 0],
    [50, 30, 0, 0], // a prompt is read in whole chunks: wherever it runs, it is cut alike
    [0, 0, 100, 0],
    [0, 0, 0, 90],
    [0, 0, 100, 0],
    [0, 0, 100, 0],
    [0, 0, 100, 0],
  ]);
  await idle(engine, runner);
});

test('in any company a prompt is cut at multiples of the chunk, and steps keep to one chunk', async () => {
  const runner = new FakeRunner(64);
  const engine = makeEngine(runner);
  const jobs = [70, 1, 129, 64, 65, 300, 2, 63].map((tokens, i) => new TestJob(tokens, 7, i));
  submitAll(engine, jobs);
  await Promise.all(jobs.map((job) => job.settled));
  for (const step of runner.steps) {
    const prompts = step.map(({ count }) => count).filter((count) => count > 1);
    expect(prompts.reduce((sum, count) => sum + count, 0)).toBeLessThanOrEqual(64);
  }
  for (const job of jobs) {
    const counts = runner.steps.map((_, step) => countOf(runner, step, job)).filter(Boolean);
    const whole = Math.floor(job.prompt.length / 64);
    const rest = job.prompt.length % 64;
    const prompt = [...new Array<number>(whole).fill(64), ...(rest > 0 ? [rest] : [])];
    expect(counts).toEqual([...prompt, 1, 1, 1, 1, 1, 1]);
  }
  expectWhole(jobs);
  await idle(engine, runner);
});

test.each([
  ['KV blocks', 12, 8],
  ['sequences', 64, 2],
])('%s admit jobs in the order they came', async (_, blocks, maxSequences) => {
  const runner = new FakeRunner(blocks);
  const engine = makeEngine(runner, { maxSequences });
  // The second does not fit beside the first two; the small ones behind it must not overtake it.
  const jobs = [500, 300, 1200, 5, 5, 900].map((tokens, i) => new TestJob(tokens, 4, i));
  submitAll(engine, jobs);
  const started: TestJob[] = [];
  runner.during = () => {
    for (const job of jobs)
      if (job.seen && !started.includes(job) && engine.sequences.includes(job.seen))
        started.push(job);
    expect(engine.sequences.length).toBeLessThanOrEqual(maxSequences);
  };
  await Promise.all(jobs.map((job) => job.settled));
  expect(started).toEqual(jobs);
  for (const job of jobs) expect(job.tokens).toEqual(job.expected);
  await idle(engine, runner);
});

test('jobs that are submitted together start together', async () => {
  const runner = new FakeRunner(64);
  const engine = makeEngine(runner);
  const jobs = [1, 2, 3].map((seed) => new TestJob(5, 2, seed));
  submitAll(engine, jobs);
  await Promise.all(jobs.map((job) => job.settled));
  expect(runner.steps.map((step) => step.length)).toEqual([3, 3]);
});

test('a job that can never fit is refused; one that just fits is not', async () => {
  const runner = new FakeRunner(4);
  const engine = makeEngine(runner);
  const [fits, never] = [new TestJob(510, 3), new TestJob(511, 3)];
  await expectLozaError(() => engine.submit(never), 'ERR_LOZA_CONTEXT_LENGTH', /513 tokens need 5/);
  engine.submit(fits);
  await fits.settled;
  expect(fits.tokens).toEqual(fits.expected);
  expect([never.errors, never.tokens]).toEqual([[], []]);
  await idle(engine, runner);
});

test('a streaming group limits a job by its window, not by its length', async () => {
  const runner = new FakeRunner(40, 5);
  const engine = makeEngine(runner);
  const job = new TestJob(4000, 20);
  engine.submit(job);
  await job.settled;
  expect(job.tokens).toEqual(job.expected);
  expect(blocksFor(job.maxTokens)).toBeGreaterThan(5);
  await idle(engine, runner);
});

test('a score job gets its logits in order, chunk by chunk', async () => {
  const runner = new FakeRunner(8);
  const engine = makeEngine(runner);
  const progress: number[] = [];
  const positions = [0, 1, 63, 64, 130, 199];
  const job = new ScoreJob(new Int32Array(200), positions, 1, (done) => progress.push(done));
  engine.submit(job);
  await job.done;
  expect(Array.from(job.logits)).toEqual(positions);
  expect(progress).toEqual([64, 128, 192, 200]);
  await idle(engine, runner);
});

describe('a step that follows another', () => {
  /** Steps that were enqueued while each ran. */
  const depths = (runner: FakeRunner): number[] => {
    const seen: number[] = [];
    runner.during = () => seen.push(runner.steps.length - seen.length - 1);
    return seen;
  };

  test('is enqueued while that one runs, and none for tokens that nobody wants', async () => {
    const runner = new FakeRunner(16);
    const ahead = depths(runner);
    const engine = makeEngine(runner);
    const job = new TestJob(5, 6);
    engine.submit(job);
    await job.settled;
    expectWhole([job]);
    expect(ahead).toEqual([0, 1, 1, 1, 1, 0]); // the prompt, five tokens
    await idle(engine, runner);
  });

  test('is not, where the device cannot go on alone', async () => {
    const runner = new FakeRunner(16);
    runner.followed = false;
    const ahead = depths(runner);
    const engine = makeEngine(runner);
    const job = new TestJob(5, 6);
    engine.submit(job);
    await job.settled;
    expect(ahead).toEqual([0, 0, 0, 0, 0, 0]);
    await idle(engine, runner);
  });

  test('waits for a job that can join', async () => {
    const runner = new FakeRunner(16);
    const ahead = depths(runner);
    const engine = makeEngine(runner);
    const [first, second] = [new TestJob(5, 30), new TestJob(70, 10, 2)];
    first.onReceive = () => first.tokens.length === 10 && engine.submit(second);
    engine.submit(first);
    await Promise.all([first.settled, second.settled]);
    expectWhole([first, second]);
    expect(ahead.filter((depth) => depth === 0).length).toBeLessThanOrEqual(6);
    expect(Math.max(...ahead)).toBe(1);
    await idle(engine, runner);
  });

  test.each([
    ['the token tells', 1],
    ['its text tells', 2],
  ])('is dropped where a job stops before; %s', async (_, dropped) => {
    const runner = new FakeRunner(16);
    const engine = makeEngine(runner);
    const [other, stopped] = [new TestJob(5, 60), new TestJob(127, 60, 2)];
    const receive = stopped.receive.bind(stopped);
    const computed: number[] = [];
    stopped.receive = (sequence, output) => {
      computed.push(sequence.computed);
      return receive(sequence, output) || stopped.tokens.length === 3;
    };
    const last = stopped.expected[2];
    if (dropped === 1) (stopped as Job).stopsAt = (token) => token === last;
    submitAll(engine, [other, stopped]);
    await other.settled;
    expectWhole([other]);
    expect(stopped.errors).toEqual([]);
    expect(stopped.tokens).toEqual(stopped.expected.slice(0, 3));
    expect(computed).toEqual([64, 127, 130, 129 + dropped]); // with three tokens it needs 129
    await idle(engine, runner);
  });
});

// ---- Random workloads ----

interface Event {
  atStep: number;
  action: 'submit' | 'cancel' | 'throw' | 'fail step';
  prompt: number;
  count: number;
  pick: number;
}
const event = fc.record<Event>({
  atStep: fc.nat(150),
  action: fc.constantFrom('submit', 'submit', 'submit', 'submit', 'cancel', 'throw', 'fail step'),
  prompt: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 600 })),
  count: fc.oneof(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max: 400 })),
  pick: fc.nat(),
});

test('random workloads: the tokens of each job alone, nothing leaks, nobody starves', async () => {
  const engines = fc.record({
    chunkTokens: fc.constantFrom(1, 16, 128, 300),
    maxSequences: fc.integer({ min: 1, max: 6 }),
    growthTokens: fc.constantFrom(0, 512),
  });
  await fc.assert(
    fc.asyncProperty(
      engines,
      fc.array(event, { minLength: 4, maxLength: 24 }),
      fc.boolean(),
      fc.boolean(),
      fc.constantFrom(0, 50),
      async (l, events, followed, cached, host) => {
        const runner = new FakeRunner(12, 12, cached, host);
        runner.followed = followed;
        const engine = makeEngine(runner, l);
        await play(
          engine,
          runner,
          [...events].sort((a, b) => a.atStep - b.atStep),
          l.chunkTokens,
        );
      },
    ),
    { numRuns: 25 },
  );
});

async function play(engine: Engine, runner: FakeRunner, events: Event[], chunk: number) {
  const [jobs, spoiled] = [new Array<TestJob>(), new Set<TestJob>()];
  let work = 0;
  let failed = new Set<unknown>();
  const apply = ({ action, prompt, count, pick }: Event) => {
    const victim = jobs[pick % Math.max(1, jobs.length)];
    if (action === 'submit') {
      const job = new TestJob(prompt, count, pick);
      work += prompt / Math.min(chunk, prompt) + count + 2;
      jobs.push(job);
      engine.submit(job);
    } else if (action === 'fail step') throw new Error('step');
    else if (victim === undefined) return;
    else if (action === 'cancel') {
      spoiled.add(victim);
      engine.cancel(victim);
    } else
      victim.onReceive = () => {
        spoiled.add(victim);
        throw new Error('a callback of the user failed');
      };
  };
  runner.during = () => {
    while (events[0] && events[0].atStep <= runner.steps.length) {
      try {
        apply(events.shift()!);
      } catch (error) {
        failed = new Set([...failed, ...runner.steps.at(-1)!.map(({ sequence }) => sequence)]);
        throw error;
      }
    }
    expect(engine.sequences.length).toBeLessThanOrEqual(6);
  };
  while (events.length > 0) {
    if (engine.sequences.length === 0 && events[0]!.action === 'fail step') events.shift();
    else if (engine.sequences.length === 0) apply(events.shift()!);
    await turn();
  }
  await idle(engine, runner);
  const again = engine.load.preemptions * Math.ceil(1000 / chunk);
  expect(runner.steps.length).toBeLessThanOrEqual(Math.ceil(work) + events.length + again);
  for (const job of jobs) {
    if (failed.has(job.seen) || spoiled.has(job))
      expect(job.tokens).toEqual(job.expected.slice(0, job.tokens.length));
    else expectWhole([job]);
  }
}
