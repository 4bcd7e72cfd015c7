import { expectWhole, TestJob } from '../support/fake-runner';
import { Simulation } from '../support/simulation';

/** Tokens that were computed for each job. */
function computed(simulation: Simulation, jobs: readonly TestJob[]): number[] {
  const sums = jobs.map(() => 0);
  simulation.submit(...jobs);
  while (!simulation.isIdle) {
    const counts = simulation.step();
    jobs.forEach((job, i) => (sums[i]! += counts.get(job) ?? 0));
  }
  expectWhole(jobs);
  return sums;
}

/** The same prompts again and again, of ten blocks each, where there is room for fourteen. */
describe('prompts that take turns', () => {
  const make = (host: number) => new Simulation({ full: 14, cached: true, host, maxSequences: 1 });
  const prompts = (simulation: Simulation, seeds: number[]) =>
    seeds.map((seed) => computed(simulation, [new TestJob(1280, 2, seed)])[0]!);

  test('are read again without the host, all or most of them', () => {
    const simulation = make(0);
    expect(
      prompts(simulation, [1, 2, 3, 1, 2, 3])
        .slice(3)
        .every((count) => count > 900),
    ).toBe(true);
  });

  test('come back from the host, where it has room for all', () => {
    const simulation = make(100);
    expect(prompts(simulation, [1, 2, 3])).toEqual([1281, 1281, 1281]);
    // All but the last block, which holds the last token.
    expect(prompts(simulation, [1, 2, 3, 2, 1])).toEqual([129, 129, 129, 129, 129]);
    expect(simulation.runner.blocksInUse).toBe(0);
  });

  test('are read again where the stream has failed: copies may be missing', () => {
    const simulation = make(100);
    prompts(simulation, [1, 2]);
    simulation.runner.prefixCache!.host!.clear();
    expect(simulation.runner.prefixCache!.host!.blocks(0)).toBe(0);
    expect(prompts(simulation, [1])[0]).toBeGreaterThan(900);
  });

  test('share a host that is too small; what came first goes', () => {
    const simulation = make(12);
    prompts(simulation, [1, 2, 3]);
    expect(simulation.runner.prefixCache!.host!.blocks(0)).toBe(12);
    expect(prompts(simulation, [2])[0]).toBeLessThan(1281);
  });
});

test('two long prompts change places where the host has room for one and not for all windows', () => {
  const blocks = 320; // ten windows, and the sink
  const simulation = new Simulation({
    ...{ full: blocks + 10, cached: true, host: blocks + 70, hostWindows: 15 },
    ...{ stepTokens: 8192, chunkTokens: 8192 },
  });
  const read = (seed: number) => computed(simulation, [new TestJob(blocks * 128, 2, seed)])[0];
  expect([1, 2, 1, 2, 1].map(read)).toEqual([40961, 40961, 129, 129, 129]);
});

test('a beginning that is on the host is shared again by all who come back', () => {
  const simulation = new Simulation({ full: 24, cached: true, host: 50 });
  const alike = (seed: number) => {
    const job = new TestJob(700, 3, seed);
    job.prompt.set(new TestJob(640, 1, 99).prompt);
    return job;
  };
  computed(simulation, [alike(1)]);
  computed(simulation, [new TestJob(2900, 2, 7)]); // takes every block
  const [first, second] = computed(simulation, [alike(2), alike(3)]);
  expect([first, second]).toEqual([60 + 2, 60 + 2]);
});
