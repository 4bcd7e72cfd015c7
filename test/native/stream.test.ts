import { Device, type Arena, type Stream } from '../../lib/native/device';
import { Ops } from '../../lib/native/ops';
import type { Tensor } from '../../lib/native/tensor';
import { compareBits } from '../../lib/selftest/compare';
import { forEachDeviceKind, testDataChecks } from '../support/devices';
import { expectLozaError } from '../support/errors';
import { Random } from '../../lib/selftest/random';

interface Bench {
  device: Device;
  stream: Stream;
  arena: Arena;
  ops: Ops;
}

/** What every backend's stream promises: native/core/stream.h. */
forEachDeviceKind('stream', (kind) => {
  let bench: Bench;
  beforeEach(() => {
    const device = new Device(kind, 'f32');
    const [stream, arena] = [device.makeStream(), device.makeArena()];
    bench = { device, stream, arena, ops: new Ops(stream, arena) };
  });
  afterEach(() => bench.device.close());

  const floats = (values: Float32Array): Tensor => {
    const tensor = bench.ops.float(values.length);
    bench.stream.write(tensor, values);
    return tensor;
  };
  const read = (tensor: Tensor) => bench.stream.readFloats(tensor);

  /** Work that keeps the stream busy for some milliseconds, and a tensor that it ends in. */
  const busy = (times: number, size = 512): Tensor => {
    const { ops } = bench;
    const [x, weight] = [ops.float(size, size), ops.float(size, size)];
    ops.fill(x, 1);
    ops.fill(weight, 1 / size);
    const sum = ops.float(size, size);
    ops.fill(sum, 0);
    for (let i = 0; i < times; i++) ops.addLinear(sum, x, { tensor: weight });
    return sum.reshape(size * size);
  };

  /** An operation that fails when it runs, and its error. */
  const failing = (id = 99): Tensor => {
    const { ops } = bench;
    const table = ops.float(4, 8);
    ops.fill(table, 0);
    return ops.gatherRows(table, ops.upload(Int32Array.of(0, id)));
  };
  const failed = (action: () => unknown, id = 99) =>
    expectLozaError(action, 'ERR_LOZA_INVALID_ARG', `row id ${id} is outside a table of 4 rows`);

  describe('order', () => {
    test.each([1, 2, 3])(
      'many small operations, writes and reads mixed (seed %i)',
      async (seed) => {
        const { ops, stream } = bench;
        const random = new Random(seed);
        const [count, size] = [6, 64];
        const swap = random.permutation(8);
        const matrix = new Float32Array(64);
        swap.forEach((from, to) => (matrix[to * 8 + from] = 1));
        const weight = { tensor: floats(matrix).reshape(8, 8) };
        const buffers = Array.from({ length: count }, () => floats(new Float32Array(size)));
        const model = Array.from({ length: count }, () => new Float32Array(size));
        const checks: Promise<void>[] = [];
        for (let step = 0; step < 1500; step++) {
          const [a, b] = [random.below(count), random.below(count)];
          const action = random.below(6);
          if (action === 0) {
            const values = random.normals(size);
            stream.write(buffers[a]!, values);
            model[a] = values.slice();
            values.fill(NaN); // a write has copied
          } else if (action === 1) {
            ops.fill(buffers[a]!, step);
            model[a] = new Float32Array(size).fill(step);
          } else if (action === 2) {
            ops.cast(buffers[a]!, buffers[b]!);
            model[a] = model[b]!.slice();
          } else if (action === 3) {
            const product = ops.linear(buffers[b]!.reshape(8, 8), weight);
            ops.cast(buffers[a]!.reshape(8, 8), product);
            const from = model[b]!;
            model[a] = from.map((_, i) => from[Math.floor(i / 8) * 8 + swap[i % 8]!]!);
          } else if (action === 4) {
            const half = buffers[a]!.slice(0, 10, 20);
            stream.write(half, new Float32Array(10).fill(-step));
            model[a] = model[a]!.slice().fill(-step, 10, 20);
          } else {
            const expected = model[a]!;
            const check = (got: Float32Array) => compareBits(`step ${step}`, got, expected, [size]);
            checks.push(read(buffers[a]!).then(check));
          }
        }
        await Promise.all(checks);
        await Promise.all(buffers.map(async (b, i) => expect(await read(b)).toEqual(model[i])));
      },
    );

    test.each([1, 7, 247, 248, 249, 1000, 300_000])(
      'a write of %i floats copies at once',
      async (n) => {
        const values = new Random(n).normals(n);
        const expected = values.slice();
        busy(2);
        const tensor = floats(values);
        values.fill(-1);
        compareBits('written', await read(tensor), expected, [n]);
      },
    );

    test('a write takes a part of an array, and refuses another size', async () => {
      const all = Float32Array.from({ length: 10 }, (_, i) => i);
      expect(Array.from(await read(floats(all.subarray(3, 6))))).toEqual([3, 4, 5]);
      const write = () => bench.stream.write(bench.ops.float(4), all);
      await expectLozaError(write, 'ERR_LOZA_INTERNAL', '40 bytes do not fill f32[4]');
    });

    test('a read is a snapshot in stream order', async () => {
      const tensor = busy(3, 128);
      const reads = [1, 2, 3, 4].map((value) => {
        bench.ops.fill(tensor, value);
        return read(tensor);
      });
      bench.ops.fill(tensor, 5);
      for (const [i, values] of (await Promise.all(reads)).entries())
        expect(new Set(values)).toEqual(new Set([i + 1]));
    });

    test('only contiguous tensors can be read and written', async () => {
      const part = bench.ops.float(4, 4).slice(1, 0, 2);
      await expectLozaError(() => read(part), 'ERR_LOZA_INTERNAL', 'not contiguous');
      const write = () => bench.stream.write(part, new Float32Array(8));
      await expectLozaError(write, 'ERR_LOZA_INTERNAL', 'do not fill');
    });

    test('tensors without elements are read, written and worked on', async () => {
      const empty = floats(new Float32Array(0));
      bench.ops.fill(empty, 1);
      expect((await read(empty)).length).toBe(0);
      const product = bench.ops.linear(bench.ops.float(0, 8), { tensor: bench.ops.float(4, 8) });
      expect(product.shape).toEqual([0, 4]);
      await bench.stream.synchronize();
    });

    test('synchronize resolves after everything before it, and promises settle in order', async () => {
      const settled: number[] = [];
      const pending: Promise<unknown>[] = [];
      const sum = busy(4);
      for (let i = 0; i < 500; i++) {
        const promise = i % 3 === 0 ? bench.stream.synchronize() : read(sum.slice(0, 0, 2));
        pending.push(promise.then(() => settled.push(i)));
      }
      expect(settled).toEqual([]);
      await Promise.all(pending);
      expect(settled).toEqual(Array.from({ length: 500 }, (_, i) => i));
    });

    test('thousands of enqueued operations wait their turn', async () => {
      busy(20);
      const counter = floats(Float32Array.of(0));
      const one = { tensor: floats(Float32Array.of(1)).reshape(1, 1) };
      const x = floats(Float32Array.of(1)).reshape(1, 1);
      for (let i = 0; i < 5000; i++) bench.ops.addLinear(counter.reshape(1, 1), x, one);
      expect((await read(counter))[0]).toBe(5000);
    });

    test('two streams of a device work side by side', async () => {
      const other = bench.device.makeStream();
      const slow = busy(30);
      const mine = read(slow);
      const tensor = bench.device.allocate('f32', [3], 'workspace');
      other.write(tensor, Float32Array.of(1, 2, 3));
      expect(Array.from(await other.readFloats(tensor))).toEqual([1, 2, 3]);
      expect((await mine)[0]).toBeCloseTo(30, 3);
    });
  });

  describe('failure', () => {
    testDataChecks(kind).each(['synchronize', 'read'] as const)(
      'the next %s tells; what was behind is skipped',
      async (report) => {
        const [kept, source] = [floats(Float32Array.of(1, 2)), floats(Float32Array.of(7, 7))];
        failing();
        bench.ops.fill(kept, 9);
        bench.stream.write(kept, Float32Array.of(8, 8));
        bench.ops.cast(kept, source);
        await failed(() => (report === 'read' ? read(kept) : bench.stream.synchronize()));
        expect(Array.from(await read(kept))).toEqual([1, 2]);
        bench.ops.fill(kept, 3);
        expect(Array.from(await read(kept))).toEqual([3, 3]);
      },
    );

    testDataChecks(kind)('each failure is reported once, the first of several', async () => {
      const value = floats(Float32Array.of(1));
      failing(50);
      failing(60);
      const first = bench.stream.synchronize();
      bench.ops.fill(value, 2); // behind the report: runs
      const second = read(value);
      failing(-70);
      const third = bench.stream.synchronize();
      const fourth = bench.stream.synchronize();
      await failed(() => first, 50);
      expect((await second)[0]).toBe(2);
      await failed(() => third, -70);
      await fourth;
    });

    test('a call with wrong shapes throws at once and enqueues nothing', async () => {
      const { ops } = bench;
      const call = () => ops.linear(ops.float(2, 3), { tensor: ops.float(4, 5) });
      await expectLozaError(call, 'ERR_LOZA_INTERNAL', /linear/);
      await bench.stream.synchronize();
    });

    testDataChecks(kind)(
      'inside a graph, it fails the launch and skips the rest of it',
      async () => {
        const value = floats(Float32Array.of(1));
        const ids = bench.ops.upload(Int32Array.of(99));
        const table = bench.ops.float(4, 8);
        const graph = bench.stream.record(() => {
          bench.ops.gatherRows(table, ids);
          bench.ops.fill(value, 2);
        });
        bench.stream.launch(graph);
        await failed(() => bench.stream.synchronize());
        expect((await read(value))[0]).toBe(1);
        bench.stream.write(ids, Int32Array.of(3));
        bench.stream.launch(graph);
        expect((await read(value))[0]).toBe(2);
      },
    );
  });

  test('the event loop turns while a long operation runs', async () => {
    const { ops, stream } = bench;
    const [x, weight] = [ops.float(1024, 2048), ops.float(2048, 2048)];
    const sum = ops.float(1024, 2048);
    for (const tensor of [x, weight, sum]) ops.fill(tensor, 1);
    const times = kind === 'cuda' ? 400 : 4;
    await stream.synchronize();
    let [last, longest, ticks] = [performance.now(), 0, 0];
    const timer = setInterval(() => {
      const now = performance.now();
      [longest, last, ticks] = [Math.max(longest, now - last), now, ticks + 1];
    }, 2);
    const start = performance.now();
    for (let i = 0; i < times; i++) ops.addLinear(sum, x, { tensor: weight });
    const done = stream.synchronize();
    expect(performance.now() - start).toBeLessThan(50);
    await done;
    clearInterval(timer);
    const took = performance.now() - start;
    expect(took).toBeGreaterThan(20);
    expect(ticks).toBeGreaterThan(3);
    expect(longest).toBeLessThan(took / 2);
  });
});
