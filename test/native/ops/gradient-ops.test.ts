import { GradientOps } from '../../../lib/native/gradient-ops';
import { Ops } from '../../../lib/native/ops';
import type { Tensor } from '../../../lib/native/tensor';
import { compare, compareBits } from '../../../lib/selftest/compare';
import { planOf, randomIds } from '../../../lib/selftest/cases/expert-plan';
import { inverseFrequencies } from '../../../lib/selftest/cases/rope';
import { dotProduct } from '../../../lib/selftest/differences';
import { host, type HostTensor } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';

forEachDevice('gradients of linear operations are their adjoints', (lab) => {
  const act = lab.activation;
  const random = new Random('adjoint');
  const normals = (dtype: 'f32' | 'bf16', ...shape: number[]) =>
    host(dtype, shape, random.normals(shape.reduce((a, b) => a * b)));

  /** <dout, out> = <din, in> for results that `run` makes from the same tensors. */
  const expectAdjoint = async (
    inputs: Record<'x' | 'dout', HostTensor>,
    run: (ops: Ops, x: Tensor, dout: Tensor) => { out: Tensor; dx: Tensor },
  ) => {
    const results = await lab.run((ops) => {
      return run(ops, lab.upload(inputs.x), lab.upload(inputs.dout));
    });
    const [forward, backward] = [
      dotProduct(inputs.dout.values, results['out']!),
      dotProduct(inputs.x.values, results['dx']!),
    ];
    const size = Math.sqrt(
      dotProduct(inputs.dout.values, inputs.dout.values) *
        dotProduct(results['out']!, results['out']!),
    );
    expect(Math.abs(forward - backward) / size).toBeLessThan(act === 'f32' ? 1e-6 : 1e-3);
  };

  test('linear', async () => {
    const weight = normals('bf16', 72, 136);
    await expectAdjoint({ x: normals(act, 40, 136), dout: normals(act, 40, 72) }, (ops, x, dy) => {
      const matrix = { tensor: lab.upload(weight) };
      return { out: ops.linear(x, matrix), dx: new GradientOps(ops).linearInput(dy, matrix) };
    });
  });

  test('linears: matrices that share x', async () => {
    const weights = [normals('bf16', 24, 64), normals('bf16', 40, 64)];
    await expectAdjoint({ x: normals(act, 30, 64), dout: normals(act, 30, 64) }, (ops, x, dy) => {
      const joined = weights.map((weight) => ({ tensor: lab.upload(weight) }));
      const dx = ops.float(30, 64);
      ops.fill(dx, 0);
      new GradientOps(ops).addLinearsInput(dx, dy, joined);
      return { out: ops.linears(x, joined), dx };
    });
  });

  test('rope, by a table of negated positions', async () => {
    const positions = Int32Array.of(0, 1, 77, 5000, 131_071);
    const frequencies = inverseFrequencies(16, 1e4);
    await expectAdjoint(
      { x: normals(act, 5, 3, 16), dout: normals(act, 5, 3, 16) },
      (ops, x, dx) => {
        const table = (at: Int32Array) =>
          ops.ropeTable(ops.upload(at), lab.upload(frequencies), 1.3, false);
        ops.rope(x, table(positions));
        new GradientOps(ops).rope(dx, table(positions.map((at) => -at)));
        return { out: x, dx };
      },
    );
  });

  test('grouped_linear through the order of the slots', async () => {
    const [rows, topK, experts] = [25, 3, 6];
    const ids = randomIds(random, rows, topK, experts);
    const { order, place, starts } = planOf(ids, experts);
    const weight = normals('bf16', experts, 48, 64);
    const slots = rows * topK;
    await expectAdjoint(
      { x: normals(act, rows, 64), dout: normals(act, slots, 48) },
      (ops, x, dy) => {
        const plan = {
          order: ops.upload(order),
          place: ops.upload(place),
          starts: ops.upload(starts),
        };
        const matrices = { tensor: lab.upload(weight) };
        const gradients = new GradientOps(ops);
        const dx = ops.float(rows, 64);
        ops.fill(dx, 0);
        gradients.sumSlots(dx, gradients.groupedInput(dy, matrices, plan), plan);
        return { out: ops.groupedLinear(x, matrices, plan, topK), dx };
      },
    );
  });
});

forEachDevice('the head, some rows at a time', (lab) => {
  const [rows, hidden, vocabulary] = [50, 32, 200];
  const random = new Random('head');
  const x = host(lab.activation, [rows, hidden], random.normals(rows * hidden));
  const weight = host('bf16', [vocabulary, hidden], random.normals(vocabulary * hidden, 0.3));
  const targets = host('i32', [rows], random.integers(rows, vocabulary));
  const weights = host(
    'f32',
    [rows],
    Float32Array.from({ length: rows }, () => random.uniform()),
  );

  /** Outside the lab's arena, which cannot guard what a scope inside a run allocates. */
  const unguarded = () => new Ops(lab.stream, lab.open().device.makeArena());

  const headLoss = (chunk: number) =>
    lab.run(() => {
      const ops = unguarded();
      const dx = ops.float(rows, hidden);
      const dweight = ops.float(vocabulary, hidden);
      ops.fill(dweight, 0);
      const loss = new GradientOps(ops).headLoss({
        x: lab.upload(x),
        weight: { tensor: lab.upload(weight) },
        targets: lab.upload(targets),
        weights: lab.upload(weights),
        ...{ dx, dweight, chunk },
      });
      return { loss, dx, dweight };
    });

  test('gives what all rows at once give', async () => {
    const whole = await headLoss(rows);
    const parts = await headLoss(16);
    for (const [name, values] of Object.entries(parts)) {
      if (lab.kind === 'cpu' && name !== 'dweight')
        compareBits(name, values, whole[name]!, [values.length]);
      else compare(name, values, whole[name]!, [values.length], { relative: 2e-3, absolute: 0.02 });
    }
  });

  test('can give the loss alone', async () => {
    const whole = await headLoss(rows);
    const loss = await lab.runOne(() =>
      new GradientOps(unguarded()).headLoss({
        x: lab.upload(x),
        weight: { tensor: lab.upload(weight) },
        targets: lab.upload(targets),
        weights: lab.upload(weights),
        chunk: rows,
      }),
    );
    compareBits('loss', loss, whole['loss']!, [rows]);
  });
});

forEachDevice('gradients that are not finite', (lab) => {
  test('leave weights and moments as they are', async () => {
    const results = await lab.run((ops) => {
      const gradients = new GradientOps(ops);
      const [weight, m, v] = [1, 2, 3].map((value) => {
        const tensor = ops.float(8);
        ops.fill(tensor, value);
        return tensor;
      });
      const gradient = lab.upload(host('f32', [8], [1, 2, NaN, 0, 0, 0, 0, 0]));
      const clip = gradients.clipFactor([gradient], 1);
      const numbers = { rate: 1, beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 1, step: 1 };
      gradients.adamw({ weight: weight!, m: m!, v: v!, gradient, clip, ...numbers });
      return { weight: weight!, m: m!, v: v!, clip };
    });
    for (const [name, value] of [
      ['weight', 1],
      ['m', 2],
      ['v', 3],
      ['clip', NaN],
    ] as const)
      expect([...new Set(results[name])]).toEqual([value]);
  });
});

forEachDevice('gradients of the wrong shape', (lab) => {
  const refused = (message: RegExp, body: (ops: Ops, gradients: GradientOps) => void) =>
    expectLozaError(
      () =>
        lab.run((ops) => {
          body(ops, new GradientOps(ops));
          return {};
        }),
      'ERR_LOZA_INTERNAL',
      message,
    );

  test('are refused', async () => {
    await refused(/linear gradient: dy/, (ops, gradients) =>
      gradients.linearInput(ops.activation(2, 5), { tensor: ops.float(4, 8) }),
    );
    await refused(/linear gradient: x/, (ops, gradients) =>
      gradients.addLinearWeight(ops.float(4, 8), ops.activation(2, 4), ops.activation(3, 8)),
    );
    await refused(/y is absent/, (ops, gradients) => {
      const out = ops.float(3);
      gradients.blend(out, 1, out, 1);
    });
    await refused(/no whole number of slots/, (ops, gradients) => {
      const place = ops.integers(5);
      gradients.sumSlots(ops.float(2, 4), ops.activation(5, 4), {
        ...{ order: place, place, starts: place },
      });
    });
  });

  test('experts in f8e4m3 are refused, with a way out', async () => {
    await refused(/dequantise the checkpoint to bf16/, (ops, gradients) => {
      const tensor = ops.arena.allocate('f8e4m3', [2, 4, 8]);
      const starts = ops.integers(3);
      const plan = { order: starts, place: starts, starts };
      gradients.groupedInput(ops.activation(6, 4), { tensor, scale: ops.float(2, 1, 1) }, plan);
    });
  });

  testDataChecks(lab.kind)('a target outside the vocabulary fails the stream', async () => {
    const run = () =>
      lab.runOne((ops) => {
        const logits = lab.upload(host('f32', [1, 4], [0, 1, 2, 3]));
        const weights = lab.upload(host('f32', [1], [1]));
        return new GradientOps(ops).crossEntropy(logits, ops.upload(Int32Array.of(4)), weights);
      });
    await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', /target 4 is outside a vocabulary of 4/);
  });
});
