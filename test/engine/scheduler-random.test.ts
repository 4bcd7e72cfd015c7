import fc from 'fast-check';
import { expectWhole, TestJob } from '../support/fake-runner';
import { Simulation } from '../support/simulation';

interface Event {
  atStep: number;
  action: 'submit' | 'cancel' | 'fail step' | 'fail allocation';
  prompt: number;
  count: number;
  pick: number;
}

// Without the bias towards small numbers: with those, blocks never run out.
const event = fc.noBias(
  fc.record<Event>({
    atStep: fc.nat(300),
    action: fc.oneof(
      { weight: 12, arbitrary: fc.constant('submit' as const) },
      { weight: 2, arbitrary: fc.constant('cancel' as const) },
      { weight: 1, arbitrary: fc.constantFrom('fail step' as const, 'fail allocation' as const) },
    ),
    prompt: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 900 })),
    count: fc.oneof(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 1, max: 600 })),
    pick: fc.nat(),
  }),
);

const options = fc.record({
  full: fc.integer({ min: 12, max: 24 }),
  streaming: fc.integer({ min: 6, max: 30 }),
  cached: fc.boolean(),
  host: fc.constantFrom(0, 5, 200),
  hostWindows: fc.constantFrom(4, 200),
  stepTokens: fc.constantFrom(128, 200, 400),
  chunkTokens: fc.constantFrom(1, 16, 100, 128),
  maxSequences: fc.integer({ min: 1, max: 8 }),
  growthTokens: fc.constantFrom(0, 0, 512),
});

test('random workloads: the tokens of each job alone, nothing leaks, nobody starves', () => {
  let [steps, preemptions] = [0, 0];
  fc.assert(
    fc.property(options, fc.array(event, { minLength: 15, maxLength: 40 }), (given, events) => {
      const simulation = new Simulation(given);
      play(simulation, events);
      steps += simulation.steps;
      preemptions += simulation.scheduler.preemptions;
    }),
    { numRuns: 10, seed: 20261122, endOnFailure: true }, // shrinking would take minutes
  );
  expect(steps).toBeGreaterThan(5000);
  expect(preemptions).toBeGreaterThan(2);
});

/** Steps that all jobs take one after another, each interrupted by every other at most twice. */
function play(simulation: Simulation, events: readonly Event[]): void {
  const spoiled = new Set<TestJob>();
  const coming = [...events].sort((a, b) => a.atStep - b.atStep);
  for (let at = 0; coming.length > 0 || !simulation.isIdle; at++) {
    let fails = false;
    while (coming[0] !== undefined && (coming[0].atStep <= at || simulation.isIdle)) {
      const { action, prompt, count, pick } = coming.shift()!;
      const job = simulation.jobs[pick % simulation.jobs.length];
      if (action === 'submit') simulation.submit(new TestJob(prompt, count, pick % 7));
      else if (action === 'fail step') fails = !simulation.isIdle;
      else if (action === 'fail allocation') failNextAllocation(simulation);
      else if (job !== undefined) {
        spoiled.add(job);
        simulation.cancel(job);
      }
    }
    if (!simulation.isIdle) simulation.step(fails);
    expect(at).toBeLessThan(50_000);
  }
  expect(simulation.runner.blocksInUse).toBe(0);
  for (const job of simulation.jobs) {
    expect(job.tokens).toEqual(job.expected.slice(0, job.tokens.length));
    if (!spoiled.has(job) && job.errors.length === 0) expectWhole([job]);
  }
}

/** As a pool that has lost count would: the job that asks fails, and nobody else. */
function failNextAllocation({ runner }: Simulation): void {
  const { pool } = runner.groups[0]!;
  pool.allocate = () => {
    Reflect.deleteProperty(pool, 'allocate');
    throw new Error('no block');
  };
}
