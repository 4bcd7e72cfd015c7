import type { Job } from '../../lib/engine/job';
import { LozaError } from '../../lib/errors';
import { expectLozaError } from '../support/errors';
import {
  FakeRunner,
  expectWhole,
  idle,
  makeEngine,
  submitAll,
  TestJob,
  turn,
} from '../support/fake-runner';

async function until(condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > 10_000) throw new Error('waited in vain');
    await turn();
  }
}

describe('cancel', () => {
  const states: [
    string,
    (job: TestJob, runner: FakeRunner, cancel: () => void) => Promise<void>,
  ][] = [
    ['before the first step', async (_, __, cancel) => Promise.resolve(cancel())],
    [
      'while it waits',
      async (_, runner, cancel) => {
        await until(() => runner.steps.length > 2);
        cancel();
      },
    ],
    [
      'while its prompt is read',
      async (job, _, cancel) => {
        await until(() => (job.seen?.computed ?? 0) > 100);
        expect(job.tokens.length).toBe(0);
        cancel();
      },
    ],
    [
      'during a step',
      async (job, runner, cancel) => {
        await until(() => job.seen !== undefined);
        let done = false;
        runner.during = () => {
          cancel();
          done = true;
        };
        await until(() => done);
      },
    ],
    [
      'while it decodes',
      async (job, _, cancel) => {
        await until(() => job.tokens.length > 3);
        cancel();
      },
    ],
    [
      'from its own receive',
      async (job, _, cancel) => {
        job.onReceive = () => job.tokens.length === 3 && cancel();
        await until(() => job.tokens.length > 3);
      },
    ],
    [
      'twice, and again when it is gone',
      async (job, runner, cancel) => {
        await until(() => job.tokens.length > 1);
        cancel();
        cancel();
        const { length } = runner.steps;
        await until(() => runner.steps.length > length + 2);
        cancel();
      },
    ],
  ];

  test.each(states)('%s', async (name, reach) => {
    const runner = new FakeRunner(64);
    const maxSequences = name === 'while it waits' ? 2 : 8;
    const engine = makeEngine(runner, { maxSequences });
    const others = [90, 7].map((tokens, i) => new TestJob(tokens, 40, i));
    const job = new TestJob(400, 1000, 9);
    submitAll(engine, [...others, job]);
    let stepsAtCancel = -1;
    await reach(job, runner, () => {
      engine.cancel(job);
      stepsAtCancel = runner.steps.length;
    });
    runner.during = () => {
      const mine = engine.sequences.some((sequence) => sequence === job.seen);
      if (runner.steps.length > stepsAtCancel) expect(mine).toBe(false);
    };
    await Promise.all(others.map((other) => other.settled));
    expectWhole(others);
    await idle(engine, runner);
    const later = runner.steps.slice(stepsAtCancel).flat();
    expect(later.some(({ sequence }) => sequence === job.seen)).toBe(false);
    expect(job.errors).toEqual([]); // whoever cancels knows already
    expect(job.tokens.length).toBeLessThan(job.count);
  });

  test('of a job that is done or was never submitted does nothing', async () => {
    const runner = new FakeRunner(16);
    const engine = makeEngine(runner);
    const [done, other] = [new TestJob(5, 2), new TestJob(5, 50, 2)];
    submitAll(engine, [done, other]);
    await done.settled;
    engine.cancel(done);
    engine.cancel(new TestJob(1, 1));
    await other.settled;
    expectWhole([done, other]);
    await idle(engine, runner);
  });

  test('makes room for the jobs that wait', async () => {
    const runner = new FakeRunner(4);
    const engine = makeEngine(runner);
    const [large, next] = [new TestJob(500, 10), new TestJob(480, 5, 2)];
    submitAll(engine, [large, next]);
    await until(() => large.tokens.length > 2);
    expect(next.seen).toBeUndefined();
    engine.cancel(large);
    await next.settled;
    expectWhole([next]);
    await idle(engine, runner);
  });
});

describe('a failing step', () => {
  test('fails the jobs of the step, frees their blocks, and the engine goes on', async () => {
    const runner = new FakeRunner(16);
    const engine = makeEngine(runner, { maxSequences: 2 });
    const jobs = [90, 7, 300, 5].map((tokens, i) => new TestJob(tokens, 20, i));
    submitAll(engine, jobs);
    const failure = new LozaError('ERR_LOZA_OUT_OF_MEMORY', 'no more');
    await until(() => jobs[0]!.tokens.length > 2);
    runner.during = () => {
      runner.during = () => undefined;
      throw failure;
    };
    await Promise.all(jobs.map((job) => job.settled));
    expect(jobs.map((job) => job.errors)).toEqual([[failure], [failure], [], []]);
    expectWhole(jobs.slice(2));
    await idle(engine, runner);
    const again = new TestJob(200, 20, 7);
    engine.submit(again);
    await again.settled;
    expectWhole([again]);
    await idle(engine, runner);
  });

  test('leaves running jobs alone that had no part in it', async () => {
    const runner = new FakeRunner(32);
    const engine = makeEngine(runner, { chunkTokens: 50 });
    const [first, second] = [new TestJob(120, 3), new TestJob(120, 3, 2)];
    submitAll(engine, [first, second]); // the chunk is too small for both
    runner.during = () => {
      runner.during = () => undefined;
      throw new Error('lost');
    };
    await Promise.all([first.settled, second.settled]);
    expect(first.errors.length).toBe(1);
    expectWhole([second]);
    await idle(engine, runner);
  });

  test.each([0, 1, 2, 5, 20])('step %i; blocks are free again', async (at) => {
    const runner = new FakeRunner(16);
    const engine = makeEngine(runner);
    const jobs = [200, 3].map((tokens, i) => new TestJob(tokens, 10 + 30 * i, i));
    submitAll(engine, jobs);
    runner.during = () => {
      if (runner.steps.length === at + 1) throw new Error(`step ${at}`);
    };
    await Promise.all(jobs.map((job) => job.settled));
    await idle(engine, runner);
  });
});

test('a job whose receive throws fails alone', async () => {
  const runner = new FakeRunner(32);
  const engine = makeEngine(runner);
  const jobs = [100, 20, 300].map((tokens, i) => new TestJob(tokens, 15, i));
  const problem = new Error('a callback of the user failed');
  jobs[1]!.onReceive = () => {
    if (jobs[1]!.tokens.length === 4) throw problem;
  };
  submitAll(engine, jobs);
  await Promise.all(jobs.map((job) => job.settled));
  expect(jobs[1]!.errors).toEqual([problem]);
  expectWhole([jobs[0]!, jobs[2]!]);
  await idle(engine, runner);
});

function fails(): never {
  throw new Error('a bug in a job');
}

test.each([
  ['plan', (job: Job) => (job.plan = fails)],
  ['fail', (job: Job) => (job.fail = job.receive = fails)],
])('a job whose %s throws does not take the engine with it', async (_, spoil) => {
  const runner = new FakeRunner(32);
  const engine = makeEngine(runner);
  const [bad, beside, later] = [1, 2, 3].map((seed) => new TestJob(5, 5, seed));
  spoil(bad!);
  submitAll(engine, [bad!, beside!]);
  await beside!.settled;
  engine.submit(later!);
  await later!.settled;
  expectWhole([beside!, later!]);
  await idle(engine, runner);
  await engine.close();
});

describe('close', () => {
  const whenIs: [string, (jobs: TestJob[], runner: FakeRunner) => Promise<unknown>][] = [
    ['before the first step', () => Promise.resolve()],
    ['while prompts are read', (_, runner) => until(() => runner.steps.length > 1)],
    ['while tokens are decoded', (jobs) => until(() => jobs[1]!.tokens.length > 5)],
  ];
  test.each(whenIs)(
    '%s: every job is rejected once, and no step runs afterwards',
    async (_, when) => {
      const runner = new FakeRunner(32);
      const engine = makeEngine(runner, { maxSequences: 2 });
      const jobs = [300, 5, 900, 1].map((tokens, i) => new TestJob(tokens, 500, i));
      submitAll(engine, jobs);
      await when(jobs, runner);
      await engine.close();
      const { length } = runner.steps;
      expect(runner.blocksInUse).toBe(0);
      for (const { errors } of jobs)
        expect(errors).toEqual([expect.objectContaining({ code: 'ERR_LOZA_CLOSED' })]);
      await expectLozaError(() => engine.submit(new TestJob(1, 1)), 'ERR_LOZA_CLOSED', /closed/);
      await engine.close();
      for (let i = 0; i < 10; i++) await turn();
      expect(runner.steps.length).toBe(length);
      expect(jobs.map((job) => job.errors.length)).toEqual([1, 1, 1, 1]);
    },
  );

  test('of an idle engine resolves', async () => {
    await makeEngine(new FakeRunner(1)).close();
  });

  test('during a step that fails resolves, too', async () => {
    const runner = new FakeRunner(8);
    const engine = makeEngine(runner);
    const job = new TestJob(5, 5);
    let closing: Promise<void> | undefined;
    runner.during = () => {
      closing = engine.close();
      throw new Error('lost');
    };
    engine.submit(job);
    await until(() => closing !== undefined);
    await closing;
    expect(job.errors[0]).toMatchObject({ code: 'ERR_LOZA_CLOSED' });
    expect(runner.blocksInUse).toBe(0);
  });
});
