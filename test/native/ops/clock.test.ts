import { intervals, Stopwatch, usualEffort } from '../../../lib/bench/stopwatch';
import { Workbench } from '../../../lib/bench/workbench';
import { forEachDevice } from '../../support/devices';

forEachDevice('clock', ({ kind }) => {
  let bench: Workbench;
  beforeAll(() => {
    bench = new Workbench(kind);
  });
  afterAll(() => bench.close());

  test('goes on, in a recorded graph too', async () => {
    const { ops } = bench;
    const stamps = bench.tensor('i32', 3, 2);
    const [x, weight] = [bench.activations(64, 512), bench.weight('bf16', 512, 512)];
    const read = (i: number) => ops.clock(stamps.slice(0, i, i + 1).reshape(2));
    const body = () =>
      ops.arena.scope(() => {
        for (let i = 0; i < 3; i++) {
          read(i);
          ops.linear(x, weight);
        }
      });
    body();
    const eager = intervals(await ops.stream.readIntegers(stamps));
    const graph = ops.stream.record(body);
    ops.stream.launch(graph);
    const replayed = intervals(await ops.stream.readIntegers(stamps));
    for (const between of [...eager, ...replayed]) {
      expect(between).toBeGreaterThan(0);
      expect(between).toBeLessThan(1e9);
    }
  });

  test('the stopwatch gives twice the work about twice the time', async () => {
    const watch = new Stopwatch(bench, { ...usualEffort, totalNs: 10_000_000 });
    const [x, weight] = [bench.activations(64, 512), bench.weight('bf16', 512, 512)];
    const time = (times: number) =>
      watch.time(1, () => {
        for (let i = 0; i < times; i++) bench.ops.linear(x, weight);
      });
    const [once, twice] = [await time(2), await time(8)];
    expect(once.nanoseconds).toBeGreaterThan(0);
    expect(twice.nanoseconds / once.nanoseconds).toBeGreaterThan(1.5);
    expect(once.calls).toBeGreaterThanOrEqual(1);
  });
});
