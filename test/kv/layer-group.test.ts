import fc from 'fast-check';
import { blocksFor, groupRange, LayerGroup } from '../../lib/kv/layer-group';
import type { LayerGroupKind } from '../../lib/kv/layer-group';
import { SequenceBlocks } from '../../lib/kv/sequence-blocks';
import type { Device } from '../../lib/native/device';
import type { DType } from '../../lib/native/tensor';
import { expectLozaError } from '../support/errors';

const blockTokens = 128;

/** A device that only remembers what was asked of it. */
class FakeDevice {
  readonly allocations: { dtype: DType; shape: readonly number[]; purpose: string }[] = [];
  allocate(dtype: DType, shape: readonly number[], purpose: string) {
    return { handle: this.allocations.push({ dtype, shape, purpose }) };
  }
}

interface GroupCase {
  kind: LayerGroupKind;
  sinkBlocks: number;
  localBlocks: number;
}

function makeGroup({ kind, ...pattern }: GroupCase, capacity = 64, device = new FakeDevice()) {
  const range = groupRange(kind, pattern);
  return new LayerGroup(device as unknown as Device, kind, range, [0, 2], capacity, 576, 'bf16');
}

/** The architecture's definition of the mask, by blocks: every key of a block is allowed or none. */
function readable({ kind, sinkBlocks, localBlocks }: GroupCase, query: number, block: number) {
  const own = Math.floor(query / blockTokens);
  if (block > own) return false;
  return kind === 'full' || block < sinkBlocks || block > own - localBlocks;
}

/** Blocks below `end` that a query at `next` or later can read; checked over a window of queries. */
function neededLater(group: GroupCase, next: number, end: number): number[] {
  const queries = Array.from({ length: end + 2 }, (_, i) => next + i * blockTokens);
  const blocks = Array.from({ length: end }, (_, i) => i);
  return blocks.filter((block) => queries.some((query) => readable(group, query, block)));
}

const heldBlocks = (blocks: SequenceBlocks): number[] =>
  Array.from({ length: blocks.length }, (_, i) => i).filter((i) => blocks.block(i) >= 0);

const groups: [string, GroupCase][] = [
  ['full', { kind: 'full', sinkBlocks: 1, localBlocks: 7 }],
  ['streaming 1 + 7', { kind: 'streaming', sinkBlocks: 1, localBlocks: 7 }],
  ['streaming 2 + 1', { kind: 'streaming', sinkBlocks: 2, localBlocks: 1 }],
  ['streaming 1 + 1', { kind: 'streaming', sinkBlocks: 1, localBlocks: 1 }],
  ['streaming 3 + 2', { kind: 'streaming', sinkBlocks: 3, localBlocks: 2 }],
  ['streaming 0 + 2', { kind: 'streaming', sinkBlocks: 0, localBlocks: 2 }],
];

test('caches are allocated once an attention, as KV memory', () => {
  const device = new FakeDevice();
  const group = makeGroup(groups[0]![1], 10, device);
  const cache = { dtype: 'bf16', shape: [1280, 576], purpose: 'kv' };
  expect(device.allocations).toEqual([cache, cache]);
  expect([group.cache(0).handle, group.cache(1).handle]).toEqual([1, 2]);
  expect(group.blockBytes).toBe(128 * 576 * 2 * 2);
});

test.each([
  [0, 0],
  [1, 1],
  [128, 1],
  [129, 2],
  [256, 2],
])('%i tokens take %i blocks', (tokens, blocks) => {
  expect(blocksFor(tokens)).toBe(blocks);
});

describe.each(groups)('%s', (_, shape) => {
  test('firstLocalBlock is the first readable block that is no sink', () => {
    const group = makeGroup(shape);
    for (let position = 0; position < 16 * blockTokens; position += 31) {
      const sinks = group.range.sinkBlocks;
      let first = sinks;
      while (first <= position / blockTokens && !readable(shape, position, first)) first++;
      const own = Math.floor(position / blockTokens);
      expect(group.firstLocalBlock(position)).toBe(own < sinks ? sinks : first);
    }
  });

  test('slots follow the blocks; a position without one has slot -1', () => {
    const group = makeGroup(shape);
    const other = new SequenceBlocks(group);
    const blocks = new SequenceBlocks(group);
    other.extend(129);
    blocks.extend(300);
    for (const position of [0, 1, 127, 128, 299, 383])
      expect(blocks.slot(position)).toBe(
        blocks.block(Math.floor(position / 128)) * 128 + (position % 128),
      );
    expect(blocks.slot(384)).toBe(-1);
    blocks.release();
    expect(blocks.slot(0)).toBe(-1);
  });

  test('any chunks: what is held is what can still be read, within blocksNeeded', () => {
    const chunks = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(chunks, (counts) => {
        const group = makeGroup(shape);
        const blocks = new SequenceBlocks(group);
        const total = counts.reduce((sum, count) => sum + count, 0);
        const most = group.blocksNeeded(total, Math.max(...counts));
        let computed = 0;
        for (const count of counts) {
          blocks.extend(computed + count);
          const end = blocksFor(computed + count);
          expect(heldBlocks(blocks)).toEqual(neededLater(shape, computed, end));
          expect(blocks.held).toBeLessThanOrEqual(most);
          expect(blocks.held).toBe(group.pool.inUse);
          computed += count;
          blocks.trim(computed);
          expect(heldBlocks(blocks)).toEqual(neededLater(shape, computed, end));
          expect(blocks.held + blocks.freed).toBe(end);
          expect(blocks.freed).toBe(group.blocksFreed(computed));
          expect(blocks.held).toBe(group.pool.inUse);
        }
        blocks.release();
        expect([blocks.held, blocks.freed, group.pool.inUse]).toEqual([0, 0, 0]);
      }),
      { numRuns: 40 },
    );
  });

  test('token by token, a streaming sequence holds at most sinks and locals', () => {
    const group = makeGroup(shape);
    const blocks = new SequenceBlocks(group);
    const window = shape.sinkBlocks + shape.localBlocks;
    for (let position = 0; position < 20 * blockTokens; position++) {
      blocks.extend(position + 1);
      if (shape.kind === 'streaming') expect(blocks.held).toBeLessThanOrEqual(window);
      expect(blocks.slot(position)).toBeGreaterThanOrEqual(0);
      blocks.trim(position + 1);
    }
    if (shape.kind === 'full') expect(blocks.held).toBe(20);
  });
});

// ---- Several sequences share a pool ----

interface Step {
  sequence: number;
  action: 'read' | 'trim' | 'release';
  count: number;
}

const step = fc.record<Step>({
  sequence: fc.nat(3),
  action: fc.constantFrom('read', 'read', 'read', 'trim', 'release'),
  count: fc.integer({ min: 1, max: 500 }),
});

test.each(groups)('%s: sequences share a pool, and no block is in two places', (_, shape) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.array(step, { maxLength: 60 }), (size, run) => {
      const group = makeGroup(shape, size);
      const computed = [0, 0, 0, 0];
      const sequences = computed.map(() => new SequenceBlocks(group));
      for (const { sequence: at, action, count } of run) {
        const blocks = sequences[at]!;
        if (action === 'release') {
          blocks.release();
          computed[at] = 0;
        } else if (action === 'trim') blocks.trim(computed[at]!);
        else if (canExtend(blocks, computed[at]! + count)) {
          blocks.extend(computed[at]! + count);
          computed[at]! += count;
          blocks.trim(computed[at]!);
        } else {
          expect(() => blocks.extend(computed[at]! + count)).toThrow(/KV blocks are held/);
          expect(group.pool.inUse).toBe(size);
          blocks.release(); // what the engine does
          computed[at] = 0;
        }
        checkPool(group, sequences);
        sequences.forEach((one, i) => {
          const end = blocksFor(computed[i]!);
          expect(heldBlocks(one)).toEqual(neededLater(shape, computed[i]!, end));
        });
      }
      for (const blocks of sequences) blocks.release();
      expect(group.pool.inUse).toBe(0);
    }),
    { numRuns: 40 },
  );
});

function canExtend(blocks: SequenceBlocks, tokens: number): boolean {
  const { pool } = blocks.group;
  return blocksFor(tokens) - blocks.length <= pool.capacity - pool.inUse;
}

function checkPool(group: LayerGroup, sequences: readonly SequenceBlocks[]): void {
  const held = sequences.flatMap((one) => heldBlocks(one).map((i) => one.block(i)));
  expect(new Set(held).size).toBe(held.length);
  expect(group.pool.inUse).toBe(held.length);
  expect(sequences.reduce((sum, one) => sum + one.held, 0)).toBe(held.length);
  for (const one of sequences) expect(one.held + one.freed).toBe(one.length);
}

test('releasing a block behind the back of its sequence is noticed', async () => {
  const group = makeGroup(groups[1]![1]);
  const blocks = new SequenceBlocks(group);
  blocks.extend(256);
  group.pool.release(blocks.block(1));
  await expectLozaError(() => blocks.release(), 'ERR_LOZA_INTERNAL', 'released twice');
});

test('releasing a sequence twice frees nothing twice', () => {
  const group = makeGroup(groups[1]![1]);
  const blocks = new SequenceBlocks(group);
  blocks.extend(3000);
  blocks.trim(3000);
  blocks.release();
  blocks.release();
  expect(group.pool.inUse).toBe(0);
});

test('a model without a pattern has full ranges only', () => {
  const range = { sinkBlocks: 0, localBlocks: 2 ** 31 - 1 };
  expect(groupRange('full', { sinkBlocks: 1, localBlocks: 7 })).toEqual(range);
  expect(groupRange('streaming', undefined)).toEqual(range);
  expect(groupRange('streaming', { sinkBlocks: 2, localBlocks: 3 })).toEqual({
    sinkBlocks: 2,
    localBlocks: 3,
  });
});
