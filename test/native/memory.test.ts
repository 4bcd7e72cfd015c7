import {
  Device,
  listDevices,
  type Arena,
  type Purpose,
  type Stream,
} from '../../lib/native/device';
import { Ops } from '../../lib/native/ops';
import type { DType, Tensor } from '../../lib/native/tensor';
import { probeDevices } from '../../lib/probe-devices';
import { forEachDeviceKind } from '../support/devices';
import { expectLozaError, lozaErrorOf } from '../support/errors';

test('probeDevices describes every device, and says why one is not usable', async () => {
  const devices = await probeDevices();
  expect(devices).toEqual(listDevices());
  expect(devices.map(({ kind }) => kind)).toEqual(['cpu', 'cuda']);
  for (const { name, usable, reason, cores, memoryBytes } of devices) {
    expect(name).not.toBe('');
    expect(reason === '').toBe(usable);
    expect(usable ? cores > 0 && memoryBytes > 2 ** 20 : true).toBe(true);
    expect(Number.isSafeInteger(memoryBytes) && Number.isSafeInteger(cores)).toBe(true);
  }
  expect(devices[0]).toMatchObject({ kind: 'cpu', usable: true, reason: '' });
});

test('an unusable or unknown device cannot be opened', async () => {
  for (const { kind, usable, reason } of listDevices())
    if (!usable)
      await expectLozaError(() => new Device(kind), 'ERR_LOZA_DEVICE_UNAVAILABLE', reason);
  const unknown = () => new Device('tpu' as 'cpu');
  await expectLozaError(unknown, 'ERR_LOZA_DEVICE_UNAVAILABLE', 'no device is called tpu');
});

forEachDeviceKind('memory', (kind) => {
  let device: Device;
  let arena: Arena;
  let stream: Stream;
  let ops: Ops;
  beforeEach(() => {
    device = new Device(kind, 'f32');
    [arena, stream] = [device.makeArena(), device.makeStream()];
    ops = new Ops(stream, arena);
  });
  afterEach(() => device.close());
  const held = () => {
    const { weights, mappedWeights, kv, workspace } = device.memory();
    return { weights, mappedWeights, kv, workspace };
  };
  const nothing = { weights: 0, mappedWeights: 0, kv: 0, workspace: 0 };
  const numbers = async (tensor: Tensor) => Array.from(await stream.readFloats(tensor));
  const count = (n: number) => Float32Array.from({ length: n }, (_, i) => i);

  test('bytes are counted by purpose, and go when the work before the release is done', async () => {
    const sizes: [Purpose, DType, number[], number][] = [
      ['weights', 'bf16', [10, 20], 400],
      ['kv', 'f32', [128, 5], 2560],
      ['workspace', 'f8e4m3', [7], 7],
    ];
    const tensors = sizes.map(([purpose, dtype, shape]) => device.allocate(dtype, shape, purpose));
    expect(held()).toEqual({ ...nothing, weights: 400, kv: 2560, workspace: 7 });
    const read = stream.readFloats(tensors[1]!);
    for (const tensor of tensors) device.release(tensor);
    await read;
    await stream.synchronize();
    expect(held()).toEqual(nothing);
    expect(device.memory().peak).toBe(2967);
  });

  test('operations read and write the memory of the host, which counts for itself', async () => {
    const [host, there, back] = (['host', 'kv', 'kv'] as const).map((purpose) =>
      device.allocate('f32', [1000], purpose),
    ) as [Tensor, Tensor, Tensor];
    stream.write(there, count(1000));
    ops.cast(host, there);
    ops.fill(there, 0);
    ops.cast(back, host);
    for (const tensor of [host, back])
      expect(await numbers(tensor)).toEqual(Array.from(count(1000)));
    const { host: bytes, kv, peak } = device.memory();
    expect([bytes, kv, peak]).toEqual([4000, 8000, 8000]);
    device.release(host);
    await stream.synchronize();
    expect(device.memory().host).toBe(0);
  });

  test('memory that was released is still there for the work enqueued before', async () => {
    const results = Array.from({ length: 40 }, (_, i) => {
      const tensor = device.allocate('f32', [1000], 'kv');
      ops.fill(tensor, i);
      const result = stream.readFloats(tensor);
      device.release(tensor);
      return result;
    });
    for (const [i, values] of (await Promise.all(results)).entries())
      expect([values[0], values[999]]).toEqual([i, i]);
    await stream.synchronize();
    expect(held()).toEqual(nothing);
  });

  test('a view keeps the memory of a tensor that is released', async () => {
    const tensor = device.allocate('f32', [4], 'kv');
    stream.write(tensor, count(4));
    const view = tensor.slice(0, 2, 4);
    device.release(tensor);
    expect(await numbers(view)).toEqual([2, 3]);
    device.release(view);
    await stream.synchronize();
    expect(held()).toEqual(nothing);
  });

  describe('arena', () => {
    const sizes = [10, 300_000, 1, 700_000, 5];
    const allocateAll = () => sizes.map((size) => arena.allocate('f32', [size]));

    test('what a scope took is free again: the same scope twice takes nothing more', async () => {
      arena.scope(allocateAll);
      const { workspace } = held();
      expect(workspace).toBeGreaterThan(4_000_000);
      for (let i = 0; i < 5; i++) arena.scope(allocateAll);
      expect(held()).toEqual({ ...nothing, workspace });
      const probe = arena.scope(() =>
        stream.readFloats(ops.linear(ops.float(0, 8), { tensor: ops.float(1, 8) })),
      );
      await probe;
      expect(held().workspace).toBe(workspace);
    });

    test('tensors do not overlap, inside a scope and around it', async () => {
      const outer = arena.allocate('f32', [3]);
      ops.fill(outer, 1);
      const reads = arena.scope(() => {
        const first = allocateAll();
        first.forEach((tensor, i) => ops.fill(tensor, 10 + i));
        arena.scope(() => allocateAll().forEach((tensor) => ops.fill(tensor, -1)));
        allocateAll().forEach((tensor) => ops.fill(tensor, -2));
        return first.map((tensor) => stream.readFloats(tensor));
      });
      for (const [i, values] of (await Promise.all(reads)).entries())
        expect(values.every((value) => value === 10 + i)).toBe(true);
      expect(await numbers(outer)).toEqual([1, 1, 1]);
    });

    test('a scope that throws gives back, too; the outer one keeps what it has', async () => {
      arena.scope(allocateAll);
      const { workspace } = held();
      const kept = arena.allocate('f32', [2]);
      ops.fill(kept, 5);
      for (let i = 0; i < 3; i++) {
        const fail = () =>
          arena.scope(
            () => (allocateAll(), device.failAllocationAfter(0), arena.allocate('f32', [2 ** 22])),
          );
        await expectLozaError(fail, 'ERR_LOZA_OUT_OF_MEMORY', /could not give/);
      }
      expect(held().workspace).toBe(workspace);
      expect(await numbers(kept)).toEqual([5, 5]);
    });
  });

  describe('stale handles', () => {
    const uses: [string, (tensor: Tensor) => unknown][] = [
      ['view', (tensor) => tensor.slice(0, 0, 1)],
      ['read', (tensor) => stream.readFloats(tensor)],
      ['write', (tensor) => stream.write(tensor, new Float32Array(4))],
      ['operation', (tensor) => ops.fill(tensor, 1)],
      ['release', (tensor) => device.release(tensor)],
    ];
    const origins: [string, () => Tensor][] = [
      [
        'released',
        () => {
          const t = device.allocate('f32', [4], 'kv');
          device.release(t);
          return t;
        },
      ],
      ['of a scope that ended', () => arena.scope(() => arena.allocate('f32', [4]))],
      [
        'view of a scope that ended',
        () => arena.scope(() => arena.allocate('f32', [8]).slice(0, 4, 8)),
      ],
      [
        'of a scope that threw',
        () => {
          let t!: Tensor;
          try {
            arena.scope(() => {
              t = arena.allocate('f32', [4]);
              throw new Error();
            });
          } catch {
            /* its end */
          }
          return t;
        },
      ],
    ];
    const cases = origins.flatMap(([origin, make]) =>
      uses.map(([use, act]) => [origin, use, make, act] as const),
    );
    test.each(cases)('a tensor %s: %s throws', async (_, __, make, act) => {
      const stale = make();
      await expectLozaError(() => act(stale), 'ERR_LOZA_CLOSED', /was released/);
      // Its place in the table is taken by others now: it stays stale.
      for (let i = 0; i < 50; i++) arena.scope(() => arena.allocate('f32', [4]));
      device.allocate('f32', [4], 'kv');
      await expectLozaError(() => act(stale), 'ERR_LOZA_CLOSED', /was released/);
    });

    test('it stays stale however often its place is used again', () => {
      const stale = arena.scope(() => arena.allocate('f32', [1]));
      let lives = 0;
      for (let i = 0; i < 5000; i++)
        arena.scope(() => {
          if (arena.allocate('f32', [1]).handle === stale.handle) lives++;
        });
      expect(lives).toBe(0);
    });
  });

  describe('what cannot be given', () => {
    const impossible: [string, number[], string][] = [
      ['2^50 elements', [2 ** 50], 'ERR_LOZA_INVALID_ARG'],
      ['2^50 elements in two dimensions', [2 ** 25, 2 ** 25], 'ERR_LOZA_INVALID_ARG'],
      ['an overflow', [2 ** 40, 2 ** 40, 2 ** 40], 'ERR_LOZA_INVALID_ARG'],
      ['nothing times too much', [0, 2 ** 50], 'ERR_LOZA_INVALID_ARG'],
      ['infinitely much', [Infinity], 'ERR_LOZA_INVALID_ARG'],
      ['more than any machine has', [2 ** 46], 'ERR_LOZA_OUT_OF_MEMORY'],
      ['a negative extent', [3, -1], 'ERR_LOZA_INVALID_ARG'],
      ['NaN', [NaN], 'ERR_LOZA_INVALID_ARG'],
      ['half an element', [1.5], 'ERR_LOZA_INVALID_ARG'],
      ['five dimensions', [1, 1, 1, 1, 1], 'ERR_LOZA_INVALID_ARG'],
    ];
    test.each(impossible)('%s', async (_, shape, code) => {
      for (const allocate of [
        () => device.allocate('f32', shape, 'kv'),
        () => arena.allocate('f32', shape),
      ])
        expect((await lozaErrorOf(allocate)).code).toBe(code);
      expect(held()).toEqual(nothing);
      stream.write(arena.allocate('f32', [2]), count(2));
      await stream.synchronize();
    });
  });

  describe('allocations that fail', () => {
    /** Everything that allocates, in some order; what was allocated is given back. */
    const scenario = async () => {
      const made: Tensor[] = [];
      const local = device.makeArena();
      try {
        for (const purpose of ['weights', 'kv', 'workspace'] as const)
          for (let i = 0; i < 2; i++) made.push(device.allocate('f32', [1000 * (i + 1)], purpose));
        local.scope(() => {
          const first = local.allocate('f32', [100]);
          ops.fill(first, 3);
          local.scope(() => ops.fill(local.allocate('f32', [500_000]), 4));
          ops.fill(local.allocate('bf16', [3_000_000]), 5);
          const part = made[0]!.slice(0, 0, 100);
          made.push(part); // views are released like tensors
          ops.cast(part, first);
        });
        expect((await numbers(made[0]!)).slice(0, 100)).toEqual(new Array(100).fill(3));
      } finally {
        for (const tensor of made) device.release(tensor);
        await stream.synchronize();
      }
    };
    const long = { ...nothing, workspace: expect.any(Number) };

    test('each in turn: ERR_LOZA_OUT_OF_MEMORY, the bytes are back, and all works again', async () => {
      let failures = 0;
      for (; ; failures++) {
        device.failAllocationAfter(failures);
        const error = await lozaErrorOf(scenario).catch(() => undefined);
        if (error === undefined) break;
        expect(error.code).toBe('ERR_LOZA_OUT_OF_MEMORY');
        expect(error.message).toMatch(/could not give \d+ bytes more/);
        expect(held()).toEqual(long);
        await scenario();
        expect(held()).toEqual(long);
      }
      expect(failures).toBe(9); // six tensors, three slabs
      device.failAllocationAfter(-1);
      await scenario();
    });

    test('a failure is injected once', async () => {
      device.failAllocationAfter(0);
      const allocate = () => device.allocate('f32', [10], 'kv');
      await expectLozaError(allocate, 'ERR_LOZA_OUT_OF_MEMORY', '40 bytes');
      expect(allocate().elements).toBe(10);
      expect(held()).toEqual({ ...nothing, kv: 40 });
    });

    test('an arena goes on where it was', async () => {
      arena.allocate('f32', [10]);
      const { workspace } = held();
      device.failAllocationAfter(0);
      const large = () => arena.allocate('f32', [2 ** 22]);
      await expectLozaError(large, 'ERR_LOZA_OUT_OF_MEMORY', 'could not give');
      arena.allocate('f32', [10]);
      expect(held().workspace).toBe(workspace);
    });
  });
});
