import fc from 'fast-check';
import { Sequence } from '../../lib/engine/sequence';
import { groupRange, LayerGroup } from '../../lib/kv/layer-group';
import type { Device } from '../../lib/native/device';
import { planBatch, type Batch, type GroupBatch, type Round } from '../../lib/runner/batch';

const blockTokens = 128;
const device = { allocate: () => ({}) } as unknown as Device;

interface Pattern {
  sinkBlocks: number;
  localBlocks: number;
}
interface Plan {
  pattern: Pattern;
  /** Chunks that were read before, and the new tokens of this step. */
  sequences: { chunks: number[]; count: number }[];
  expandedMinTokens: number;
  workspaceBlocks: number;
}

/** A sequence in a step, with where its rows lie. */
interface Item {
  sequence: Sequence;
  count: number;
  firstRow: number;
  absorbed: boolean;
}
interface Planned {
  batch: Batch;
  items: Item[];
  workspaceKeys: number;
}

/** Blocks are handed out to the sequences in turn, so that neighbours in a table are not in memory. */
function build({ pattern, sequences, expandedMinTokens, workspaceBlocks }: Plan): Planned {
  const groups = (['full', 'streaming'] as const).map(
    (kind) => new LayerGroup(device, kind, groupRange(kind, pattern), [0], 400, 8, 'f32'),
  );
  let token = 0;
  const items = sequences.map(({ chunks, count }) => {
    const total = chunks.reduce((sum, chunk) => sum + chunk, 0) + count;
    const tokens = Array.from({ length: total + 3 }, () => ++token);
    return { sequence: new Sequence(tokens, groups), count, chunks };
  });
  for (let turn = 0; items.some(({ chunks }) => turn < chunks.length); turn++)
    for (const { sequence, chunks } of items) {
      if (turn >= chunks.length) continue;
      sequence.extend(chunks[turn]!);
      sequence.advance(chunks[turn]!);
    }
  for (const { sequence, count } of items) sequence.extend(count);
  const workspaceKeys = workspaceBlocks * blockTokens;
  const batch = planBatch(items, groups, { expandedMinTokens, workspaceKeys });
  const placed = items.map(({ sequence, count }, i) => {
    const firstRow = batch.firstRows[i] ?? -1;
    return { sequence, count, firstRow, absorbed: count < expandedMinTokens };
  });
  return { batch, items: placed, workspaceKeys };
}

/** The architecture's definition, word for word. */
function allowed(
  { group }: GroupBatch,
  { sinkBlocks, localBlocks }: Pattern,
  t: number,
  j: number,
) {
  if (j > t || group.kind === 'full') return j <= t;
  const block = Math.floor(j / blockTokens);
  return block < sinkBlocks || block > Math.floor(t / blockTokens) - localBlocks;
}

const sequencesOf = (most: number) =>
  fc.record({
    chunks: fc.array(
      fc.oneof(fc.integer({ min: 1, max: most }), fc.constantFrom(1, 127, 128, 256)),
      { maxLength: 4 },
    ),
    count: fc.oneof(
      { weight: 2, arbitrary: fc.integer({ min: 1, max: 4 }) },
      { weight: 2, arbitrary: fc.integer({ min: 1, max: 300 }) },
      { weight: 1, arbitrary: fc.constantFrom(127, 128, 129, 256) },
    ),
  });
const plans = fc.record<Plan>({
  pattern: fc.record({
    sinkBlocks: fc.integer({ min: 0, max: 3 }),
    localBlocks: fc.integer({ min: 1, max: 4 }),
  }),
  sequences: fc.array(sequencesOf(500), { minLength: 1, maxLength: 4 }),
  expandedMinTokens: fc.constantFrom(1, 2, 5, 128, 171, 10_000),
  workspaceBlocks: fc.integer({ min: 1, max: 12 }),
});

const property = (check: (planned: Planned, plan: Plan) => void, numRuns: number) =>
  fc.assert(
    fc.property(plans, (plan) => check(build(plan), plan)),
    { numRuns },
  );

/** For what is checked a million times: jest's expect takes its time. */
function same<T>(what: string, got: T, wanted: T): void {
  if (got !== wanted) throw new Error(`${what}: ${String(got)}, expected ${String(wanted)}`);
}

test('every new token has one row with its token, position and slots; absorbed rows come first', () => {
  property(({ batch, items }) => {
    const owner = new Array<number>(batch.rows).fill(0);
    for (const { sequence, count, firstRow, absorbed } of items)
      for (let i = 0; i < count; i++) {
        const [row, position] = [firstRow + i, sequence.computed + i];
        owner[row]!++;
        same('form of a row', row < batch.absorbedRows, absorbed);
        same('position', batch.positions[row], position);
        same('token', batch.tokens[row], sequence.tokens[position]);
        for (const { group, slots } of batch.groups) {
          same('slot', slots[row], sequence.blocksOf(group).slot(position));
          same('a slot', (slots[row] ?? -1) >= 0, true);
        }
      }
    expect(owner).toEqual(owner.map(() => 1));
    for (const { slots } of batch.groups) expect(new Set(slots).size).toBe(batch.rows);
  }, 150);
});

test('rows of each form keep the order of the items; query starts delimit the absorbed ones', () => {
  property(({ batch, items }) => {
    const absorbed = items.filter((item) => item.absorbed);
    const expanded = items.filter((item) => !item.absorbed);
    let row = 0;
    for (const item of [...absorbed, ...expanded]) {
      expect(item.firstRow).toBe(row);
      row += item.count;
    }
    const starts = absorbed.map((item) => item.firstRow);
    expect(Array.from(batch.queryStarts)).toEqual([...starts, batch.absorbedRows]);
    expect(batch.rows).toBe(row);
    for (const { blockTable, tableWidth, firstLocal } of batch.groups) {
      expect(tableWidth).toBeGreaterThanOrEqual(1);
      expect(firstLocal.length).toBe(absorbed.length);
      expect(blockTable.length).toBe(absorbed.length * tableWidth);
    }
  }, 150);
});

test('a streaming block table is short: sinks, locals and the new tokens', () => {
  property(({ batch, items }, { pattern }) => {
    const counts = items.filter((item) => item.absorbed).map((item) => item.count);
    const streaming = batch.groups[1]!;
    const window = pattern.sinkBlocks + pattern.localBlocks;
    const newBlocks = Math.ceil(Math.max(0, ...counts) / blockTokens);
    expect(streaming.tableWidth).toBeLessThanOrEqual(Math.max(1, window + newBlocks));
  }, 150);
});

test('absorbed rows: table, first_local and range lead to exactly the cache rows of allowed keys', () => {
  property(({ batch, items }, { pattern }) => {
    const absorbed = items.filter((item) => item.absorbed);
    for (const part of batch.groups)
      absorbed.forEach((item, index) => {
        for (let i = 0; i < item.count; i++) checkAbsorbedQuery(part, pattern, item, index, i);
      });
  }, 60);
});

/** Every visible key, block by block, as native/ops/attention/attention.h reads the table. */
function checkAbsorbedQuery(
  part: GroupBatch,
  pattern: Pattern,
  { sequence }: Item,
  index: number,
  offset: number,
): void {
  const t = sequence.computed + offset;
  const { sinkBlocks } = part.group.range;
  const blocks = sequence.blocksOf(part.group);
  for (
    let j = 0;
    j <= t;
    j = Math.min(t, j + blockTokens - (j % blockTokens)) + (j === t ? 1 : 0)
  ) {
    if (!allowed(part, pattern, t, j)) continue;
    const block = Math.floor(j / blockTokens);
    const entry = block < sinkBlocks ? block : sinkBlocks + block - part.firstLocal[index]!;
    if (entry < 0 || entry >= part.tableWidth) throw new Error(`key ${j} is not in the table`);
    const slot = part.blockTable[index * part.tableWidth + entry]! * blockTokens;
    const expected = blocks.slot(j);
    if (expected < 0 || slot + (j % blockTokens) !== expected)
      throw new Error(`query ${t} reads key ${j} from slot ${slot + (j % blockTokens)}`);
  }
}

interface Segment {
  queryRow: number;
  queryCount: number;
  queryPosition: number;
  keyRow: number;
  keyCount: number;
  keyPosition: number;
}

function segmentsOf({ segments }: Round): Segment[] {
  expect(segments.length % 6).toBe(0);
  return Array.from({ length: segments.length / 6 }, (_, i) => {
    const [queryRow, queryCount, queryPosition, keyRow, keyCount, keyPosition] = Array.from(
      segments.subarray(i * 6, i * 6 + 6),
    ) as [number, number, number, number, number, number];
    return { queryRow, queryCount, queryPosition, keyRow, keyCount, keyPosition };
  });
}

test('rounds stay within the workspace, and their segments within the round', () => {
  property(({ batch, workspaceKeys }) => {
    for (const { rounds, group } of batch.groups)
      for (const round of rounds) {
        expect(round.slots.length).toBeGreaterThan(0);
        expect(round.slots.length).toBeLessThanOrEqual(workspaceKeys);
        for (const slot of round.slots)
          if (slot < 0 || slot >= group.pool.capacity * blockTokens)
            throw new Error(`slot ${slot}`);
        const used = new Uint8Array(round.slots.length);
        for (const { keyRow, keyCount, queryRow, queryCount } of segmentsOf(round)) {
          expect(keyRow).toBeGreaterThanOrEqual(0);
          expect(keyCount).toBeGreaterThan(0);
          expect(keyRow + keyCount).toBeLessThanOrEqual(round.slots.length);
          expect(queryRow).toBeGreaterThanOrEqual(0);
          expect(queryRow + queryCount).toBeLessThanOrEqual(batch.rows - batch.absorbedRows);
          used.fill(1, keyRow, keyRow + keyCount);
        }
        same('unused keys', used.indexOf(0), -1); // nothing is expanded for nobody
      }
  }, 100);
});

test('segments of one round that share query rows are adjacent and share the whole run', () => {
  property(({ batch }) => {
    for (const { rounds } of batch.groups)
      for (const round of rounds) {
        const segments = segmentsOf(round);
        const runs = segments.filter((one, i) => one.queryRow !== segments[i - 1]?.queryRow);
        const ends = runs.map((one) => one.queryRow + one.queryCount);
        expect(new Set(runs.map((one) => one.queryRow)).size).toBe(runs.length);
        runs.slice(1).forEach((one, i) => expect(one.queryRow).toBeGreaterThanOrEqual(ends[i]!));
        for (const one of segments) {
          const run = runs.find(({ queryRow }) => queryRow === one.queryRow);
          expect(one.queryCount).toBe(run?.queryCount);
          expect(one.queryPosition).toBe(run?.queryPosition);
        }
      }
  }, 100);
});

test('expanded rows: over all rounds, each sees every allowed key exactly once, in ascending order', () => {
  property(({ batch, items }, { pattern }) => {
    for (const part of batch.groups) {
      const rounds = part.rounds.map((round) => ({ round, segments: segmentsOf(round) }));
      for (const item of items.filter(({ absorbed }) => !absorbed)) {
        const queryRow = item.firstRow - batch.absorbedRows;
        const end = item.sequence.computed + item.count;
        const covered = new Uint8Array(end);
        let last = -1;
        for (const { round, segments } of rounds)
          for (const segment of segments.filter((one) => one.queryRow === queryRow)) {
            const { queryCount, queryPosition, keyRow, keyCount, keyPosition } = segment;
            expect([queryCount, queryPosition]).toEqual([item.count, item.sequence.computed]);
            expect(keyPosition).toBeGreaterThan(last);
            last = keyPosition + keyCount - 1;
            expect(last).toBeLessThan(end);
            for (let i = 0; i < keyCount; i++) {
              covered[keyPosition + i]!++;
              const slot = item.sequence.blocksOf(part.group).slot(keyPosition + i);
              if (slot < 0 || round.slots[keyRow + i] !== slot)
                throw new Error(`key ${keyPosition + i} is read from another slot`);
            }
          }
        expect(Math.max(...covered)).toBeLessThanOrEqual(1);
        for (let t = item.sequence.computed; t < end; t++)
          for (let j = 0; j <= t; j++)
            if (covered[j] === 0 && allowed(part, pattern, t, j))
              throw new Error(`query ${t} misses key ${j} of the ${part.group.kind} group`);
      }
    }
  }, 30);
});

test('an empty step has no rows', () => {
  const pattern = { sinkBlocks: 1, localBlocks: 2 };
  const { batch } = build({ pattern, sequences: [], expandedMinTokens: 2, workspaceBlocks: 1 });
  expect([batch.rows, batch.absorbedRows, batch.tokens.length]).toEqual([0, 0, 0]);
  expect(Array.from(batch.queryStarts)).toEqual([0]);
  for (const { rounds, slots } of batch.groups)
    expect([rounds.length, slots.length]).toEqual([0, 0]);
});
