import { fullRange, type KeyRange, type Ops } from '../../../lib/native/ops';
import { zigzag } from '../../../lib/selftest/cases/key-range';
import {
  attentionPrefill,
  prefillInputs,
  prefillScale,
  roundsOf,
  runRounds,
  type PrefillCase,
} from '../../../lib/selftest/cases/attention-prefill';
import { compare, compareBits } from '../../../lib/selftest/compare';
import { forEachDevice, testDataChecks, type Lab } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { maskPositions, maskRanges, seenPerBlock } from '../../support/key-mask';
import { host } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

/** Rounds take their maxima apart, so that weights round another way where they are bf16. */
const near = ({ activation }: Lab) => ({ relative: activation === 'bf16' ? 4e-3 : 1e-6 });

const base = { name: '', heads: 2, nope: 16, rope: 8, value: 24 };

async function prefill(
  lab: Lab,
  c: PrefillCase,
  inputs: ReturnType<typeof prefillInputs>,
  rounds: readonly number[][][] = roundsOf(c),
) {
  const { out, lse } = await lab.run((ops) => runRounds(ops, lab.uploadAll(inputs), c, rounds));
  return { out: out!, lse: lse! };
}

/** Keys of each block that queries at these positions see; with equal scores, means of one-hot rows. */
async function keysPerBlock(lab: Lab, range: KeyRange, positions: number[]) {
  const length = Math.max(...positions) + 1;
  const blocks = Math.ceil(length / 128);
  const width = 1 + blocks; // the first value is 1 at key 0 of each query's own round
  const c: PrefillCase = {
    ...base,
    heads: 1,
    nope: 2,
    rope: 2,
    value: width,
    range,
    sequences: [],
  };
  const kv = new Float32Array(length * (2 + width));
  for (let j = 0; j < length; j++) kv[j * (2 + width) + 3 + Math.floor(j / 128)] = 1;
  const inputs = {
    q: host(lab.activation, [positions.length, 1, 4], new Float32Array(positions.length * 4)),
    kv: host(lab.activation, [length, 1, 2 + width], kv),
    kRope: host(lab.activation, [length, 2], new Float32Array(length * 2)),
  };
  const segments = positions.map((t, row) => [row, 1, t, 0, t + 1, 0]);
  const { out, lse } = await prefill(lab, c, inputs, [segments]);
  // All scores are 0, so exp(lse) is the number of keys.
  return positions.map((t, row) => {
    const count = Math.round(Math.exp(lse[row]!));
    const shares = out.subarray(row * width + 1, row * width + 2 + Math.floor(t / 128));
    return Array.from(shares, (share) => Math.round(share * count));
  });
}

forEachDevice('attention_prefill', (lab) => {
  sweep(lab, attentionPrefill);

  test.each(maskRanges)('%s: sees the keys of the mask and no others', async (_, range) => {
    const expected = maskPositions.map((t) => seenPerBlock(range, t));
    expect(await keysPerBlock(lab, range, maskPositions)).toEqual(expected);
  });

  test('1 sink, 7 locals: the counts of the specification', async () => {
    const counts = await keysPerBlock(lab, zigzag, [0, 1023, 1024, 1100, 1151, 1152]);
    expect(counts.map((keys) => keys.reduce((a, b) => a + b))).toEqual([
      1, 1024, 897, 973, 1024, 897,
    ]);
  });

  const sequences = [
    { length: 1290, queries: 140 },
    { length: 333, queries: 333 },
    { length: 5, queries: 2 },
  ];

  test('rounds merged in pieces are one round', async () => {
    const c: PrefillCase = { ...base, sequences, range: zigzag };
    const inputs = prefillInputs(c, new Random('pieces'), lab.activation);
    const whole = await prefill(lab, c, inputs);
    for (const piece of [64, 128, 500, 1000]) {
      const { out, lse } = await prefill(lab, { ...c, piece }, inputs);
      compare(`out in pieces of ${piece}`, out, whole.out, inputs.q.shape, near(lab));
      compare(`lse in pieces of ${piece}`, lse, whole.lse, [lse.length / 2, 2], near(lab));
    }
  });

  test('the order of rounds does not matter', async () => {
    const c: PrefillCase = { ...base, sequences, range: fullRange, piece: 200 };
    const inputs = prefillInputs(c, new Random('order'), lab.activation);
    const forwards = await prefill(lab, c, inputs);
    const backwards = await prefill(lab, c, inputs, roundsOf(c).reverse());
    compare('out', backwards.out, forwards.out, inputs.q.shape, near(lab));
  });

  test('a range that covers the sequence gives the bits of full attention', async () => {
    const c: PrefillCase = {
      ...base,
      sequences: [{ length: 1024, queries: 200 }],
      range: fullRange,
    };
    const inputs = prefillInputs(c, new Random('cover'), lab.activation);
    const full = await prefill(lab, c, inputs);
    compareBits(
      'out',
      (await prefill(lab, { ...c, range: zigzag }, inputs)).out,
      full.out,
      inputs.q.shape,
    );
  });

  test('a sequence gives the same bits whatever the batch', async () => {
    const c: PrefillCase = { ...base, sequences, range: zigzag };
    const inputs = prefillInputs(c, new Random('batch'), lab.activation);
    const all = await prefill(lab, c, inputs);
    for (const segment of roundsOf(c)[0]!) {
      const [row = 0, count = 0] = segment;
      const alone = await prefill(lab, c, inputs, [[segment]]);
      const width = c.heads * c.value;
      const own = (values: Float32Array | Int32Array) =>
        values.subarray(row * width, (row + count) * width);
      compareBits('out', own(alone.out), own(all.out), [count, c.heads, c.value]);
    }
  });

  test('a row that sees no key stays as it was', async () => {
    const c: PrefillCase = { ...base, sequences: [{ length: 300, queries: 10 }], range: fullRange };
    const inputs = prefillInputs(c, new Random('stays'), lab.activation);
    const first = roundsOf(c);
    const once = await prefill(lab, c, inputs, first);
    // Keys behind every query, no keys at all, and a segment without queries.
    const nothing = [
      [[0, 10, 290, 0, 100, 300]],
      [[0, 10, 290, 0, 0, 0]],
      [[10, 0, 300, 0, 100, 0]],
      [],
    ];
    const twice = await prefill(lab, c, inputs, [...nothing.slice(0, 3), ...first, ...nothing]);
    compareBits('out', twice.out, once.out, inputs.q.shape);
    compareBits('lse', twice.lse, once.lse, [10, 2]);
    const never = await prefill(lab, c, inputs, nothing);
    expect(never.lse.every((lse) => lse === -Infinity)).toBe(true);
  });

  test('scores far apart do not overflow', async () => {
    const c: PrefillCase = {
      ...base,
      sequences: [{ length: 300, queries: 20 }],
      range: fullRange,
      piece: 100,
    };
    const inputs = prefillInputs(c, new Random('large'), lab.activation);
    // By a power of two, which rounds nothing in bf16.
    for (let i = 0; i < inputs.q.values.length; i++) inputs.q.values[i]! *= 2048;
    const { out } = await prefill(lab, c, inputs);
    compare('out', out, attentionPrefill.reference(c, inputs)['out']!, inputs.q.shape, {
      relative: lab.activation === 'bf16' ? 1e-2 : 1e-4,
    });
  });

  const c: PrefillCase = { ...base, sequences: [{ length: 20, queries: 10 }], range: fullRange };
  testDataChecks(lab.kind).each([
    ['query rows behind the end', [[1, 10, 10, 0, 20, 0]]],
    ['negative query rows', [[-1, 10, 10, 0, 20, 0]]],
    ['key rows behind the end', [[0, 10, 10, 1, 20, 0]]],
    ['negative key rows', [[0, 10, 10, -1, 20, 0]]],
    [
      'runs that overlap',
      [
        [0, 6, 10, 0, 20, 0],
        [5, 5, 15, 0, 20, 0],
      ],
    ],
  ])('%s: the stream fails', async (_, segments) => {
    const inputs = prefillInputs(c, new Random('broken'), lab.activation);
    await expectLozaError(
      () => prefill(lab, c, inputs, [segments]),
      'ERR_LOZA_INTERNAL',
      /attention_prefill/,
    );
  });

  test('keys of another width are refused', async () => {
    const run = (ops: Ops) => {
      const state = { out: ops.float(2, 2, 24), lse: ops.float(2, 2) };
      const [q, kv, kRope] = [
        ops.activation(2, 2, 24),
        ops.activation(3, 2, 41),
        ops.activation(3, 8),
      ];
      ops.attentionPrefill(state, q, kv, kRope, ops.integers(1, 6), prefillScale, fullRange);
      return state;
    };
    await expectLozaError(() => lab.run(run), 'ERR_LOZA_INTERNAL', /attention_prefill: kv/);
  });
});
