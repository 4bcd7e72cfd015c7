import { fullRange, type KeyRange } from '../../../lib/native/ops';
import {
  attentionDecode,
  decodeInputs,
  decodeScale,
  slotOf,
  type DecodeCase,
} from '../../../lib/selftest/cases/attention-decode';
import { visibleKeys, zigzag } from '../../../lib/selftest/cases/key-range';
import { compare, compareBits } from '../../../lib/selftest/compare';
import { forEachDevice, testDataChecks, type Lab } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { maskPositions, maskRanges, seenPerBlock } from '../../support/key-mask';
import { host } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

const base = { name: '', heads: 2, latent: 16, rope: 8, cache: 'act' } as const;

async function decode(lab: Lab, c: DecodeCase, inputs: ReturnType<typeof decodeInputs>) {
  const results = await lab.run((ops) => attentionDecode.run(ops, lab.uploadAll(inputs), c));
  return results['out']!;
}

/** The keys of each block that a query at `t` sees: with equal scores, the mean of one-hot rows. */
async function keysPerBlock(lab: Lab, range: KeyRange, t: number, shortTable: boolean) {
  const c: DecodeCase = {
    ...{ name: '', heads: 1, latent: 32, rope: 2, cache: 'act', range, shortTable },
    sequences: [{ length: t + 1, queries: 1 }],
  };
  const inputs = decodeInputs(c, new Random('mask'), lab.activation);
  inputs.q.values.fill(0);
  for (const key of visibleKeys(range, t)) {
    const row = slotOf(c, inputs, 0, key) * 34;
    inputs.cache.values.fill(0, row, row + 34);
    inputs.cache.values[row + Math.floor(key / 128)] = 1;
    inputs.cache.values[row + 31] = key === t ? 1 : 0;
  }
  const out = await decode(lab, c, inputs);
  const count = 1 / out[31]!;
  return Array.from({ length: Math.floor(t / 128) + 1 }, (_, block) =>
    Math.round(out[block]! * count),
  );
}

forEachDevice('attention_decode', (lab) => {
  sweep(lab, attentionDecode);

  test.each(maskRanges)('%s: sees the keys of the mask and no others', async (_, range) => {
    for (const t of maskPositions) {
      for (const shortTable of range === fullRange ? [false] : [false, true])
        expect({ t, keys: await keysPerBlock(lab, range, t, shortTable) }).toEqual({
          t,
          keys: seenPerBlock(range, t),
        });
    }
  });

  test.each([
    [0, 1],
    [1023, 1024],
    [1024, 897],
    [1100, 973],
    [1151, 1024],
    [1152, 897],
  ])('1 sink, 7 locals: position %i sees %i keys', async (t, count) => {
    const keys = await keysPerBlock(lab, zigzag, t, true);
    expect(keys.reduce((a, b) => a + b)).toBe(count);
    expect(visibleKeys(zigzag, t).length).toBe(count);
  });

  test('a range that covers the sequence gives the bits of full attention', async () => {
    const sequences = [
      { length: 1024, queries: 3 },
      { length: 500, queries: 1 },
    ];
    const inputs = decodeInputs(
      { ...base, sequences, range: fullRange },
      new Random('cover'),
      lab.activation,
    );
    const full = await decode(lab, { ...base, sequences, range: fullRange }, inputs);
    inputs.first.values.fill(1);
    const streaming = await decode(lab, { ...base, sequences, range: zigzag }, inputs);
    compareBits('streaming', streaming, full, inputs.q.shape);
  });

  test('a short table gives the bits of the masked full table', async () => {
    const sequences = [
      { length: 1410, queries: 4 },
      { length: 1153, queries: 2 },
      { length: 90, queries: 1 },
    ];
    const c: DecodeCase = { ...base, sequences, range: zigzag, shortTable: true };
    const inputs = decodeInputs(c, new Random('tables'), lab.activation);
    const short = await decode(lab, c, inputs);
    const [sequenceCount, entries] = [sequences.length, 14];
    const table = new Int32Array(sequenceCount * entries).fill(-3);
    for (let b = 0; b < sequenceCount; b++)
      for (let block = 0; block < Math.ceil(sequences[b]!.length / 128); block++) {
        if (block >= 1 && block < inputs.first.values[b]!) continue;
        table[b * entries + block] = slotOf(c, inputs, b, block * 128) / 128;
      }
    const full = await decode(lab, c, {
      ...inputs,
      table: host('i32', [sequenceCount, entries], table),
      first: host('i32', [sequenceCount], [1, 1, 1]),
    });
    compareBits('full table', full, short, inputs.q.shape);
  });

  test('a row gives the same bits whatever the batch', async () => {
    const sequences = [1300, 7, 129, 1024, 600].map((length, i) => ({
      length,
      queries: 1 + (i % 3),
    }));
    const c: DecodeCase = { ...base, heads: 8, sequences, range: zigzag, shortTable: true };
    const inputs = decodeInputs(c, new Random('batch'), lab.activation);
    const all = await decode(lab, c, inputs);
    const width = c.heads * (c.latent + c.rope);
    for (let b = 0; b < sequences.length; b++) {
      const [from, to] = [inputs.starts.values[b]!, inputs.starts.values[b + 1]!];
      const entries = inputs.table.shape[1]!;
      // Alone, and one row at a time: neither the batch nor the other new tokens may matter.
      for (const rows of [
        [from, to],
        [from, from + 1],
        [to - 1, to],
      ] as const) {
        const count = rows[1] - rows[0];
        const alone = await decode(lab, c, {
          ...inputs,
          q: host(
            lab.activation,
            [count, c.heads, c.latent + c.rope],
            inputs.q.values.subarray(rows[0] * width, rows[1] * width),
          ),
          table: host(
            'i32',
            [1, entries],
            inputs.table.values.subarray(b * entries, (b + 1) * entries),
          ),
          first: host('i32', [1], [inputs.first.values[b]!]),
          starts: host('i32', [2], [0, count]),
          positions: host('i32', [count], inputs.positions.values.subarray(rows[0], rows[1])),
        });
        const own = c.heads * c.latent;
        compareBits(`sequence ${b}`, alone, all.subarray(rows[0] * own, rows[1] * own), [
          count,
          c.heads,
          c.latent,
        ]);
      }
    }
  });

  const longcat = { ...base, latent: 512, rope: 64, cache: 'bf16' } as const;
  const together = [1700, 300, 129].map((length) => ({ length, queries: 1 }));
  const plans: [string, DecodeCase][] = [
    ['all keys in a line', { ...longcat, heads: 8, sequences: together, range: fullRange }],
    ['clusters', { ...longcat, heads: 20, sequences: together, range: zigzag, shortTable: true }],
  ];

  test.each(plans)('%s: with a plan of the step the bits of a call alone', async (_, c) => {
    const inputs = decodeInputs(c, new Random('plan'), lab.activation);
    const planned = await decode(lab, c, inputs);
    const results = await lab.run((ops) => {
      const { q, cache, table, first, starts, positions } = lab.uploadAll(inputs);
      const view = { blockTable: table, firstLocal: first };
      const { latent, range } = c;
      const out = ops.attentionDecode(
        ...([q, cache, latent, view, starts, positions, decodeScale, range] as const),
      );
      return { out };
    });
    compareBits('without', results['out']!, planned, [together.length, c.heads, c.latent]);
  });

  test.each(plans)('%s: the same plan, the same bits whatever the others hold', async (name, c) => {
    const inputs = decodeInputs(c, new Random('others'), lab.activation);
    const own = c.heads * c.latent;
    const all = await decode(lab, c, inputs);
    const width = c.heads * (c.latent + c.rope);
    for (const b of together.keys()) {
      const q = inputs.q.values.slice().fill(NaN, 0, b * width);
      q.fill(NaN, (b + 1) * width);
      const positions = Int32Array.from(inputs.positions.values);
      if (name === 'clusters') positions.fill(-1, 0, b).fill(-1, b + 1); // alone, in the same call
      const copy = {
        ...inputs,
        q: host(lab.activation, inputs.q.shape, q),
        positions: host('i32', inputs.positions.shape, positions),
      };
      const out = await decode(lab, c, copy);
      compareBits(
        `sequence ${b}`,
        out.subarray(b * own, (b + 1) * own),
        all.subarray(b * own, (b + 1) * own),
        [1, c.heads, c.latent],
      );
    }
  });

  test('scores far apart do not overflow', async () => {
    const c: DecodeCase = { ...base, sequences: [{ length: 700, queries: 1 }], range: fullRange };
    const inputs = decodeInputs(c, new Random('large'), lab.activation);
    // By a power of two, which rounds nothing in bf16.
    for (let i = 0; i < inputs.q.values.length; i++) inputs.q.values[i]! *= 2048;
    const out = await decode(lab, c, inputs);
    const reference = attentionDecode.reference(c, inputs)['out']!;
    compare('out', out, reference, [1, c.heads, c.latent], {
      relative: lab.activation === 'bf16' ? 1e-2 : 1e-4,
    });
  });

  const broken = (change: (inputs: ReturnType<typeof decodeInputs>) => void) => {
    const c: DecodeCase = { ...base, sequences: [{ length: 200, queries: 2 }], range: fullRange };
    const inputs = decodeInputs(c, new Random('broken'), lab.activation);
    change(inputs);
    return decode(lab, c, inputs);
  };
  testDataChecks(lab.kind).each<[string, (inputs: ReturnType<typeof decodeInputs>) => void]>([
    ['a needed table entry outside the cache', ({ table }) => (table.values[1] = 1_000_000)],
    ['a needed table entry that is negative', ({ table }) => (table.values[0] = -1)],
    ['a position behind the table', ({ positions }) => (positions.values[1] = 100_000)],
    ['a row of no sequence', ({ starts }) => (starts.values[1] = 1)],
  ])('%s: the stream fails', async (_, change) => {
    await expectLozaError(() => broken(change), 'ERR_LOZA_INTERNAL', /attention_decode/);
  });

  test('a cache of another width is refused', async () => {
    const run = () =>
      lab.runOne((ops) => {
        const view = { blockTable: ops.integers(1, 1), firstLocal: ops.integers(1) };
        const [q, cache] = [ops.activation(1, 2, 24), ops.activation(128, 25)];
        return ops.attentionDecode(
          q,
          cache,
          16,
          view,
          ops.integers(2),
          ops.integers(1),
          decodeScale,
          fullRange,
        );
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /attention_decode: cache/);
  });
});
