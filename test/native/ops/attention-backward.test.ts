import {
  attentionBackward,
  attentionForward,
  type AttentionInputs,
} from '../../../lib/native/attention-gradient-ops';
import { fullRange, type KeyRange, type Ops } from '../../../lib/native/ops';
import {
  attentionBackwardCases,
  attentionBackwardReference,
  attentionReference,
  backwardInputs,
  backwardScale,
  rowsOf,
  runBackward,
  segmentsOf,
  type AttentionBackwardCase,
  type AttentionSizes,
  type AttentionValues,
} from '../../../lib/selftest/cases/attention-backward';
import { zigzag } from '../../../lib/selftest/cases/key-range';
import { compareBits } from '../../../lib/selftest/compare';
import { Random } from '../../../lib/selftest/random';
import { forEachDevice, testDataChecks, type Lab } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { sweep } from '../../support/sweep';

const base = { name: '', heads: 2, nope: 16, rope: 8, value: 24, range: fullRange };
type Gradients = Record<'q' | 'kv' | 'kRope', Float64Array>;
const parts = ['q', 'kv', 'kRope'] as const;

async function gradients(lab: Lab, c: AttentionBackwardCase, seed = 'gradients') {
  const inputs = backwardInputs(c, new Random(seed), lab.activation);
  return await lab.run((ops) => ({ ...runBackward(ops, lab.uploadAll(inputs), c) }));
}

/** <a, b>, in float64. */
function inner(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

const float64 = (values: ArrayLike<number>) => Float64Array.from(values);

/** x + step * direction. */
function moved(x: AttentionValues, direction: AttentionValues, step: number): AttentionValues {
  const along = (part: (typeof parts)[number]) =>
    float64(x[part]).map((value, i) => value + step * direction[part][i]!);
  return { q: along('q'), kv: along('kv'), kRope: along('kRope') };
}

function randomPoint(c: AttentionSizes, seed: string): AttentionValues & { dOut: Float64Array } {
  const { q, kv, kRope, dOut } = backwardInputs(c, new Random(seed), 'f32');
  return {
    q: float64(q.values),
    kv: float64(kv.values),
    kRope: float64(kRope.values),
    dOut: float64(dOut.values),
  };
}

describe('the reference of attention_backward', () => {
  const cases: [string, AttentionSizes][] = [
    ['full', { ...base, sequences: [{ length: 9 }, { length: 1 }, { length: 30 }] }],
    [
      'streaming',
      { ...base, heads: 1, range: { sinkBlocks: 1, localBlocks: 1 }, sequences: [{ length: 280 }] },
    ],
    ['a chunk', { ...base, sequences: [{ length: 40, queries: 11 }] }],
  ];

  test.each(cases)('%s: is the slope of central differences', (_, c) => {
    const x = randomPoint(c, 'point');
    const direction = randomPoint(c, 'direction');
    const gradient: Gradients = attentionBackwardReference(c, x, x.dOut);
    const slope = parts.reduce((sum, part) => sum + inner(gradient[part], direction[part]), 0);
    const error = (h: number) => {
      const [ahead, behind] = [h, -h].map((step) =>
        inner(attentionReference(c, moved(x, direction, step)), x.dOut),
      );
      return Math.abs((ahead! - behind!) / (2 * h) - slope) / Math.abs(slope);
    };
    const [coarse, fine] = [error(1e-2), error(1e-3)];
    expect(fine).toBeLessThan(1e-4);
    expect(coarse / fine).toBeGreaterThan(80); // errors fall with h²
    expect(coarse / fine).toBeLessThan(120);
    expect(error(1e-5)).toBeLessThan(1e-6);
  });
});

forEachDevice('attention_backward', (lab) => {
  sweep(lab, attentionBackwardCases);

  test('is the adjoint of the derivative along a direction', async () => {
    const c: AttentionBackwardCase = {
      ...base,
      range: { sinkBlocks: 1, localBlocks: 2 },
      sequences: [{ length: 500 }, { length: 33 }],
    };
    const { q, kv, kRope, dOut } = backwardInputs(c, new Random('gradients'), lab.activation);
    const x = { q: q.values, kv: kv.values, kRope: kRope.values };
    const direction = randomPoint(c, 'direction');
    const h = 1e-5;
    const [ahead, behind] = [h, -h].map((step) => attentionReference(c, moved(x, direction, step)));
    const along = ahead!.map((value, i) => (value - behind![i]!) / (2 * h));
    const found = await gradients(lab, c);
    const slope = parts.reduce((sum, part) => sum + inner(found[part]!, direction[part]), 0);
    // Signs cancel in the products: what matters is their size.
    const size = Math.sqrt(inner(along, along) * inner(dOut.values, dOut.values));
    const bound = lab.activation === 'bf16' ? 1e-3 : 1e-6;
    expect(Math.abs(slope - inner(along, dOut.values)) / size).toBeLessThan(bound);
  });

  test('a range that covers the sequences gives the bits of full attention', async () => {
    const c = { ...base, sequences: [{ length: 1024 }, { length: 300 }] };
    const full = await gradients(lab, c);
    const streaming = await gradients(lab, { ...c, range: zigzag });
    for (const part of parts) compareBits(part, streaming[part]!, full[part]!, []);
  });

  test('the same bits again and again, and whatever the batch', async () => {
    const c = { ...base, range: zigzag, sequences: [{ length: 256 }, { length: 384 }] };
    const inputs = backwardInputs(c, new Random('batch'), lab.activation);
    const run = (segments: number[][]) =>
      lab.run((ops) => {
        const tensors = lab.uploadAll(inputs);
        const attention: AttentionInputs = {
          ...tensors,
          segments: ops.upload(Int32Array.from(segments.flat()), segments.length, 6),
          softmaxScale: backwardScale,
          range: c.range,
        };
        const result = attentionForward(ops, attention);
        return { ...attentionBackward(ops, attention, result, tensors.dOut) };
      });
    const segments = segmentsOf(c);
    const [together, again] = [await run(segments), await run(segments)];
    for (const part of parts) compareBits(part, again[part]!, together[part]!, []);
    for (const segment of segments) {
      const alone = await run([segment]);
      const [row = 0, rows = 0] = segment;
      for (const part of parts) {
        const width = together[part]!.length / 640;
        const own = (values: Float32Array | Int32Array) =>
          values.subarray(row * width, (row + rows) * width);
        compareBits(part, own(alone[part]!), own(together[part]!), []);
      }
      const outside = rowsOf(c).rows - rows;
      const zeros = alone['kRope']!.filter((value) => value === 0).length;
      expect(zeros).toBe(outside * c.rope);
    }
  });

  test('no segments: zeros', async () => {
    const c = { ...base, sequences: [], gap: 0 };
    const found = await lab.run((ops) => {
      const [q, kv, kRope] = [
        ops.activation(3, 2, 24),
        ops.activation(5, 2, 40),
        ops.activation(5, 8),
      ];
      const inputs = { ...{ q, kv, kRope }, segments: ops.integers(0, 6), softmaxScale: 1 };
      const result = { out: ops.float(3, 2, 24), lse: ops.float(3, 2) };
      const attention = { ...inputs, range: c.range };
      return { ...attentionBackward(ops, attention, result, ops.activation(3, 2, 24)) };
    });
    for (const part of parts) expect(found[part]!.every((value) => value === 0)).toBe(true);
  });

  test('the gradient of shared keys goes into a part of wider rows', async () => {
    const c = { ...base, sequences: [{ length: 70 }] };
    const inputs = backwardInputs(c, new Random('gradients'), lab.activation);
    const whole = await gradients(lab, c);
    const part = await lab.run((ops) => {
      const tensors = lab.uploadAll(inputs);
      const attention: AttentionInputs = {
        ...tensors,
        segments: ops.upload(Int32Array.from(segmentsOf(c)[0]!), 1, 6),
        softmaxScale: backwardScale,
        range: c.range,
      };
      const wide = ops.activation(70, 30);
      ops.fill(wide, 3);
      const into = {
        q: ops.activation(...tensors.q.shape),
        kv: ops.activation(...tensors.kv.shape),
        kRope: wide.slice(1, 10, 18),
      };
      attentionBackward(ops, attention, attentionForward(ops, attention), tensors.dOut, { into });
      return { wide };
    });
    const wide = part['wide']!;
    for (let row = 0; row < 70; row++) {
      const own = wide.subarray(row * 30, row * 30 + 30);
      compareBits(
        'kRope',
        own.subarray(10, 18),
        whole['kRope']!.subarray(row * 8, row * 8 + 8),
        [],
      );
      expect(own.filter((value) => value === 3).length).toBeGreaterThanOrEqual(22);
    }
  });

  testDataChecks(lab.kind).each<[string, number[][]]>([
    ['query rows behind the end', [[1, 10, 0, 0, 10, 0]]],
    ['negative key rows', [[0, 10, 0, -1, 10, 0]]],
    ['query rows of two segments', [[0, 6, 0, 0, 6, 0], [5, 5, 0, 6, 4, 0]]], // prettier-ignore
    ['key rows of two segments', [[0, 5, 0, 0, 6, 0], [5, 5, 0, 5, 5, 0]]], // prettier-ignore
  ])('%s: the stream fails', async (_, segments) => {
    const c = { ...base, sequences: [{ length: 10 }] };
    const inputs = backwardInputs(c, new Random('broken'), lab.activation);
    const run = (ops: Ops) => {
      const tensors = lab.uploadAll(inputs);
      const attention = {
        ...tensors,
        segments: ops.upload(Int32Array.from(segments.flat()), segments.length, 6),
        softmaxScale: backwardScale,
        range: fullRange satisfies KeyRange,
      };
      const result = { out: ops.float(10, 2, 24), lse: ops.float(10, 2) };
      return { ...attentionBackward(ops, attention, result, tensors.dOut) };
    };
    await expectLozaError(() => lab.run(run), 'ERR_LOZA_INTERNAL', /attention_backward/);
  });

  test('a gradient of another width is refused', async () => {
    const run = (ops: Ops) => {
      const inputs = {
        q: ops.activation(2, 2, 24),
        kv: ops.activation(3, 2, 40),
        kRope: ops.activation(3, 8),
        segments: ops.integers(1, 6),
        softmaxScale: 1,
        range: fullRange,
      };
      const result = { out: ops.float(2, 2, 24), lse: ops.float(2, 2) };
      return { ...attentionBackward(ops, inputs, result, ops.activation(2, 2, 25)) };
    };
    await expectLozaError(() => lab.run(run), 'ERR_LOZA_INTERNAL', /attention_backward: kv/);
  });
});
