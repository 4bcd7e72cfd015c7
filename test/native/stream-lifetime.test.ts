import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { Device, type Arena, type Graph, type Stream } from '../../lib/native/device';
import { Ops } from '../../lib/native/ops';
import type { Tensor } from '../../lib/native/tensor';
import { compareBits } from '../../lib/selftest/compare';
import { forEachDeviceKind, testDataChecks } from '../support/devices';
import { expectLozaError, lozaErrorOf } from '../support/errors';
import { Random } from '../../lib/selftest/random';

interface Bench {
  device: Device;
  stream: Stream;
  arena: Arena;
  ops: Ops;
}

const compiled = path.join(__dirname, '..', '..', 'dist', 'native');
const missing = ['device.js', 'ops.js'].some((file) => !existsSync(path.join(compiled, file)));

/** The part of native/core/stream.h about graphs, and about the end of streams. */
forEachDeviceKind('stream', (kind) => {
  let bench: Bench;
  const open = (): Bench => {
    const device = new Device(kind, 'f32');
    const [stream, arena] = [device.makeStream(), device.makeArena()];
    return { device, stream, arena, ops: new Ops(stream, arena) };
  };
  beforeEach(() => (bench = open()));
  afterEach(() => bench.device.close());

  const filled = (value: number, ...shape: number[]): Tensor => {
    const tensor = bench.ops.float(...shape);
    bench.ops.fill(tensor, value);
    return tensor;
  };
  const read = (tensor: Tensor) => bench.stream.readFloats(tensor);
  const busy = (times: number, size = 384) => {
    const [x, weight, sum] = [1, 1, 0].map((value) => filled(value, size, size));
    for (let i = 0; i < times; i++) bench.ops.addLinear(sum!, x!, { tensor: weight! });
  };

  describe('graph', () => {
    test('recording runs nothing; each launch runs all', async () => {
      const [sum, x, w] = [filled(0, 1, 1), filled(2, 1, 1), filled(3, 1, 1)];
      const graph = bench.stream.record(() => bench.ops.addLinear(sum, x, { tensor: w }));
      expect((await read(sum))[0]).toBe(0);
      for (let i = 0; i < 4; i++) bench.stream.launch(graph);
      expect((await read(sum))[0]).toBe(24);
    });

    test('a replay is the eager run, bit for bit, on what its inputs hold by then', async () => {
      const { ops, stream } = bench;
      const random = new Random('replay');
      const weight = ops.float(40, 64);
      stream.write(weight, random.normals(40 * 64));
      const ids = ops.integers(5);
      const table = ops.float(20, 64);
      stream.write(table, random.normals(20 * 64));
      const norm = filled(1, 64);
      const body = () => {
        const x = ops.rmsNorm(ops.gatherRows(table, ids), norm, 1e-6);
        return ops.linear(x, { tensor: weight });
      };
      let recorded!: Tensor;
      stream.write(ids, new Int32Array(5).fill(-1)); // would fail, if it ran
      const graph = stream.record(() => (recorded = body()));
      const results: [Promise<Float32Array>, Promise<Float32Array>][] = [];
      for (let replay = 0; replay < 20; replay++) {
        stream.write(ids, random.integers(5, 20));
        if (replay % 5 === 4) stream.write(weight, random.normals(40 * 64));
        stream.launch(graph);
        results.push([read(recorded), read(body())]);
      }
      for (const [replayed, eager] of results)
        compareBits('replay', await replayed, await eager, [5, 40]);
    });

    // A GPU's graph reads what it varies in from tensors: writes come before its launch.
    const testWrites = kind === 'cuda' ? test.skip : test;
    testWrites('writes of any size are recorded with their values', async () => {
      const [small, large] = [filled(0, 3), filled(0, 5000)];
      const values = new Float32Array(5000).fill(4);
      const graph = bench.stream.record(() => {
        bench.stream.write(small, values.subarray(0, 3));
        bench.stream.write(large, values);
      });
      values.fill(5);
      for (let i = 0; i < 2; i++) {
        bench.ops.fill(large, 0);
        bench.stream.launch(graph);
        expect([(await read(small))[2], (await read(large))[4999]]).toEqual([4, 4]);
      }
    });

    test('several graphs are independent; an empty one does nothing; one may launch another', async () => {
      const [a, b] = [filled(0, 1), filled(0, 1)];
      const set = (to: Tensor, value: number) =>
        bench.stream.record(() => bench.ops.fill(to, value));
      const [one, two, nothing] = [set(a, 1), set(b, 2), bench.stream.record(() => undefined)];
      const both = bench.stream.record(() => [one, two].forEach((g) => bench.stream.launch(g)));
      bench.stream.launch(nothing);
      bench.stream.launch(two);
      expect([(await read(a))[0], (await read(b))[0]]).toEqual([0, 2]);
      bench.ops.fill(b, 9);
      bench.stream.launch(both);
      expect([(await read(a))[0], (await read(b))[0]]).toEqual([1, 2]);
    });

    test('a body that throws leaves the stream usable, and its work undone', async () => {
      const value = filled(1, 2);
      const record = () =>
        bench.stream.record(() => {
          bench.ops.fill(value, 7);
          throw new Error('from the body');
        });
      expect(record).toThrow('from the body');
      expect(Array.from(await read(value))).toEqual([1, 1]);
      bench.stream.launch(bench.stream.record(() => bench.ops.fill(value, 3)));
      expect(Array.from(await read(value))).toEqual([3, 3]);
    });

    test('graphs do not nest, and reads are not recorded', async () => {
      const value = filled(1, 2);
      const nested = () => bench.stream.record(() => bench.stream.record(() => undefined));
      await expectLozaError(nested, 'ERR_LOZA_INTERNAL', /being recorded already/);
      let inside!: Promise<unknown>;
      bench.stream.record(() => void (inside = read(value)));
      await expectLozaError(() => inside, 'ERR_LOZA_INTERNAL', /not while a graph is recorded/);
      expect(Array.from(await read(value))).toEqual([1, 1]);
    });
  });

  describe('after close', () => {
    test('pending promises reject with ERR_LOZA_CLOSED', async () => {
      const { device, stream } = bench;
      const value = filled(1, 4);
      if (kind === 'cuda') busy(100, 2048);
      else busy(400);
      const pending = Array.from({ length: 50 }, (_, i) =>
        i % 2 ? stream.synchronize() : read(value),
      );
      const errors = Promise.all(pending.map((promise) => lozaErrorOf(() => promise)));
      device.close();
      expect(new Set((await errors).map(({ code }) => code))).toEqual(new Set(['ERR_LOZA_CLOSED']));
    });

    testDataChecks(kind)('a failure from before is still told', async () => {
      const graph = bench.ops.gatherRows(filled(0, 2, 8), bench.ops.upload(Int32Array.of(5)));
      const pending = lozaErrorOf(() => read(graph));
      await new Promise((resolve) => setTimeout(resolve, 20));
      bench.device.close();
      expect((await pending).code).toBe('ERR_LOZA_INVALID_ARG');
    });

    let tensor: Tensor;
    let graph: Graph;
    const calls: [string, () => unknown][] = [
      ['Device.allocate', () => bench.device.allocate('f32', [1], 'kv')],
      ['Device.mapFile', () => bench.device.mapFile(__filename, 1)],
      ['Device.release', () => bench.device.release(tensor)],
      ['Device.makeArena', () => bench.device.makeArena()],
      ['Device.makeStream', () => bench.device.makeStream()],
      ['Device.memory', () => bench.device.memory()],
      ['Device.freeMemory', () => bench.device.freeMemory()],
      ['Arena.allocate', () => bench.arena.allocate('f32', [1])],
      ['Arena.scope', () => bench.arena.scope(() => undefined)],
      ['Tensor.slice', () => tensor.slice(0, 0, 1)],
      ['Stream.write', () => bench.stream.write(tensor, new Float32Array(4))],
      ['Stream.readFloats', () => read(tensor)],
      ['Stream.synchronize', () => bench.stream.synchronize()],
      ['Stream.record', () => bench.stream.record(() => undefined)],
      ['Stream.launch', () => bench.stream.launch(graph)],
      ['an operation', () => bench.ops.fill(tensor, 1)],
      ['an operation with a new output', () => bench.ops.linear(tensor, { tensor })],
    ];
    test.each(calls)('%s throws ERR_LOZA_CLOSED', async (_, call) => {
      tensor = filled(1, 2, 2);
      graph = bench.stream.record(() => bench.ops.fill(tensor, 2));
      bench.device.close();
      bench.device.close();
      await expectLozaError(call, 'ERR_LOZA_CLOSED', /closed|released/);
      bench.device.close();
    });

    test('close during a recording throws from record, not a crash', async () => {
      const record = () => bench.stream.record(() => bench.device.close());
      await expectLozaError(record, 'ERR_LOZA_CLOSED', /closed/);
    });

    test('a hundred devices open and close, with and without work', async () => {
      for (let i = 0; i < 100; i++) {
        bench.device.close();
        bench = open();
        if (i % 3 > 0) busy(1);
        if (i % 3 > 1) expect((await read(filled(i, 2)))[1]).toBe(i);
      }
    });
  });

  // ---- Other threads and processes: they load the compiled package ----

  if (missing) {
    test.skip(`workers and processes skipped: ${compiled} is not built`, () => {});
    return;
  }

  const prelude = `
    const { Device } = require(${JSON.stringify(path.join(compiled, 'device.js'))});
    const { Ops } = require(${JSON.stringify(path.join(compiled, 'ops.js'))});
    const device = new Device(${JSON.stringify(kind)}, 'f32');
    const stream = device.makeStream();
    const ops = new Ops(stream, device.makeArena());
    const [x, w, sum] = [1, 1, 0].map((value) => {
      const tensor = ops.float(256, 256);
      ops.fill(tensor, value);
      return tensor;
    });
    const work = (times) => {
      for (let i = 0; i < times; i++) ops.addLinear(sum, x, { tensor: w });
      return stream.readFloats(sum);
    };`;
  const worker = (body: string) =>
    new Worker(`const { parentPort } = require('node:worker_threads'); ${prelude} ${body}`, {
      eval: true,
    });
  const messageOf = (from: Worker) =>
    new Promise((resolve, reject) => from.once('message', resolve).once('error', reject));

  describe('in worker threads', () => {
    test('several work at the same time as this thread', async () => {
      const workers = [1, 2, 3].map((n) =>
        worker(`work(${n}).then((v) => parentPort.postMessage(v[0]));`),
      );
      const exits = workers.map((one) => new Promise((resolve) => one.once('exit', resolve)));
      busy(3);
      const mine = read(filled(4, 1));
      expect(await Promise.all(workers.map(messageOf))).toEqual([256, 512, 768]);
      expect((await mine)[0]).toBe(4);
      expect(await Promise.all(exits)).toEqual([0, 0, 0]);
    });

    test('terminated with work pending, again and again', async () => {
      for (let i = 0; i < 6; i++) {
        const one = worker(
          `for (let i = 0; i < 50; i++) work(200); parentPort.postMessage('busy');`,
        );
        await messageOf(one);
        expect(await one.terminate()).toBe(1);
      }
      expect((await read(filled(6, 1)))[0]).toBe(6);
    });
  });

  describe('in a process', () => {
    const run = (body: string) =>
      new Promise<unknown>((resolve) => {
        const child = spawn(process.execPath, ['--expose-gc', '-e', `${prelude} ${body}`], {
          timeout: 5_000,
        });
        let output = '';
        child.stdout.on('data', (data: Buffer) => (output += data.toString()));
        child.on('close', (code, signal) => resolve({ code, signal, output }));
      });
    const keepBusy = 'const pending = [work(4000), work(10)];';
    test.each([
      ['exit(0) with work pending', `${keepBusy} process.exit(0);`, 0, ''],
      ['exit(7) with work pending', `${keepBusy} process.exit(7);`, 7, ''],
      ['exit in a later turn', `${keepBusy} setTimeout(() => process.exit(3), 30);`, 3, ''],
      ['an uncaught exception', `${keepBusy} throw new Error('gone');`, 1, ''],
      [
        'exit after close',
        `${keepBusy} pending.map((p) => p.catch(() => {})); device.close(); process.exit(5);`,
        5,
        '',
      ],
      [
        'a pending promise keeps it alive',
        `work(50).then((v) => console.log(v[0]));`,
        0,
        `${50 * 256}\n`,
      ],
      [
        'a refused synchronize does not keep it alive',
        `stream.record(() => stream.synchronize().catch((e) => console.log(e.code)));`,
        0,
        'ERR_LOZA_INTERNAL\n',
      ],
      ['no pending promise does not', `ops.fill(sum, 1);`, 0, ''],
      [
        'garbage collection while work is pending',
        `for (let i = 0; i < 20; i++) { work(3).then((v) => i === 19 && console.log(v[0])); new Ops(device.makeStream(), device.makeArena()).float(9); gc(); }`,
        0,
        `${60 * 256}\n`,
      ],
    ])('%s', async (_, body, code, output) => {
      expect(await run(body)).toEqual({ code, signal: null, output });
    });
  });
});
