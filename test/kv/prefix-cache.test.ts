import fc from 'fast-check';
import { Sequence } from '../../lib/engine/sequence';
import { blocksFor, groupRange, LayerGroup, type LayerGroupKind } from '../../lib/kv/layer-group';
import { PrefixCache } from '../../lib/kv/prefix-cache';
import type { Device } from '../../lib/native/device';

const blockTokens = 128;

const device = { allocate: () => ({}) } as unknown as Device;

interface Shape {
  sinkBlocks: number;
  localBlocks: number;
  kinds: readonly LayerGroupKind[];
}

/** Mixes a token into the hash of those before it; never NaN. */
const mix = (hash: number, token: number): number =>
  (Math.imul(hash ^ token, 0x01000193) >>> 0) ^ (token << 3);

/**
 * Pools, a cache, and rows as a device would have them: each holds a hash of all tokens up to its
 * own, so that a row of another prefix is seen. A block that is given out holds NaN at first.
 */
class Memory {
  readonly groups: LayerGroup[];
  readonly cache: PrefixCache;
  readonly sequences: Sequence[] = [];
  private readonly rows: Map<LayerGroup, Float64Array>;

  constructor({ kinds, sinkBlocks, localBlocks }: Shape, capacity: number, cached = true) {
    const pattern = { sinkBlocks, localBlocks };
    this.groups = kinds.map(
      (kind, i) => new LayerGroup(device, kind, groupRange(kind, pattern), [i], capacity, 8, 'f32'),
    );
    this.cache = new PrefixCache(this.groups);
    this.rows = new Map(
      this.groups.map((group) => [group, new Float64Array(capacity * blockTokens).fill(NaN)]),
    );
    for (const group of this.groups) this.poison(group);
    if (!cached) this.cache = undefined as unknown as PrefixCache;
  }

  add(tokens: readonly number[]): Sequence {
    const sequence = new Sequence(tokens, this.groups, this.cache);
    this.sequences.push(sequence);
    return sequence;
  }

  fork(sequence: Sequence): Sequence {
    const fork = sequence.fork();
    this.sequences.push(fork);
    return fork;
  }

  remove(sequence: Sequence): void {
    sequence.release();
    this.sequences.splice(this.sequences.indexOf(sequence), 1);
  }

  /** One step of a sequence; returns what makes it known that it has ended well. */
  step(sequence: Sequence, count: number, failed = false): () => void {
    sequence.extend(count, (group, from, to) => {
      const rows = this.rowsOf(group);
      rows.copyWithin(to * blockTokens, from * blockTokens, (from + 1) * blockTokens);
    });
    const hashes = hashesOf(sequence.tokens);
    for (let i = sequence.computed; i < sequence.computed + count; i++) {
      for (const group of this.groups) {
        const slot = sequence.blocksOf(group).slot(i);
        this.rowsOf(group)[slot] = failed ? NaN : (hashes[i] as number);
      }
    }
    return sequence.advance(count);
  }

  /** Reads a prompt in chunks, to its end or as far as there are blocks. */
  read(sequence: Sequence, chunk: number): void {
    while (sequence.computed < sequence.tokens.length) {
      const count = Math.min(chunk, sequence.tokens.length - sequence.computed);
      if (sequence.missing(count) !== undefined) return;
      this.step(sequence, count)();
    }
  }

  /** What the next token of each sequence may read is what it computed or would have computed. */
  check(): void {
    for (const sequence of this.sequences) {
      const hashes = hashesOf(sequence.tokens);
      for (const group of this.groups) {
        const blocks = sequence.blocksOf(group);
        const first = group.firstLocalBlock(sequence.computed) * blockTokens;
        const sinks = group.range.sinkBlocks * blockTokens;
        for (let i = 0; i < sequence.computed; i++) {
          if (i >= sinks && i < first) continue;
          const row = this.rowsOf(group)[blocks.slot(i)];
          if (row === hashes[i]) continue;
          throw new Error(`${group.kind} row ${i} of ${sequence.computed} holds ${row}`);
        }
      }
    }
    for (const group of this.groups) this.checkPool(group);
  }

  /** Reference counts are holders; free, cached and held blocks are all there are. */
  private checkPool(group: LayerGroup): void {
    const { pool } = group;
    const holders = new Map<number, number>();
    const hold = (block: number) => {
      if (block >= 0) holders.set(block, (holders.get(block) ?? 0) + 1);
    };
    for (const sequence of this.sequences) {
      const blocks = sequence.blocksOf(group);
      const own = Array.from({ length: blocks.length }, (_, i) => blocks.block(i));
      const held = [...own.filter((block) => block >= 0), ...parkedOf(blocks)];
      if (new Set(held).size !== held.length) throw new Error('a block is twice in a sequence');
      held.forEach(hold);
    }
    const inside = pool as unknown as { free: number[]; holders: Int32Array };
    for (let block = 0; block < pool.capacity; block++) {
      expectEqual(inside.holders[block]!, holders.get(block) ?? 0, `holders of block ${block}`);
    }
    expectEqual(pool.inUse, holders.size, 'blocks in use');
    expectEqual(inside.free.length + pool.cached + pool.inUse, pool.capacity, 'all blocks');
    expectEqual(new Set(inside.free).size, inside.free.length, 'free blocks');
    const isLost = inside.free.find((block) => holders.has(block));
    if (isLost !== undefined) throw new Error(`block ${isLost} is free and held`);
  }

  private rowsOf(group: LayerGroup): Float64Array {
    return this.rows.get(group) as Float64Array;
  }

  private poison({ pool }: LayerGroup): void {
    const group = this.groups.find((one) => one.pool === pool) as LayerGroup;
    const allocate = pool.allocate.bind(pool);
    pool.allocate = () => {
      const block = allocate();
      this.rowsOf(group).fill(NaN, block * blockTokens, (block + 1) * blockTokens);
      return block;
    };
  }
}

function hashesOf(tokens: readonly number[]): number[] {
  let hash = 7;
  return tokens.map((token) => (hash = mix(hash, token)));
}

const parkedOf = (blocks: object): number[] => [
  ...(blocks as { parked: Map<number, number> }).parked.values(),
];

function expectEqual(actual: number, expected: number, what: string): void {
  if (actual !== expected) throw new Error(`${what}: ${actual}, expected ${expected}`);
}

/** `length` tokens that differ from those of another `kind` from position `from` on. */
function text(length: number, kind = 0, from = 0): number[] {
  return Array.from({ length }, (_, i) => (i >= from ? 1000 * kind : 0) + (i % 977));
}

const both = ['full', 'streaming'] as const;
const shapes: [string, Shape][] = [
  ['1 + 7', { sinkBlocks: 1, localBlocks: 7, kinds: both }],
  ['1 + 2', { sinkBlocks: 1, localBlocks: 2, kinds: both }],
  ['2 + 1', { sinkBlocks: 2, localBlocks: 1, kinds: both }],
  ['0 + 3', { sinkBlocks: 0, localBlocks: 3, kinds: both }],
  ['full only', { sinkBlocks: 1, localBlocks: 2, kinds: ['full'] }],
  ['streaming only', { sinkBlocks: 1, localBlocks: 2, kinds: ['streaming'] }],
];
const paper = shapes[0]![1];

describe('a prompt that was read before', () => {
  test.each<[number, number]>([
    [1, 0],
    [128, 0],
    [129, 1],
    [1000, 7],
    [1024, 7], // the last token is computed in any case
    [1025, 8],
    [6000, 46],
  ])('of %i tokens: %i blocks are taken from the cache', (length, blocks) => {
    const memory = new Memory(paper, 200);
    const first = memory.add(text(length));
    expect(first.reuse()).toBe(0);
    memory.read(first, 512);
    for (const released of [false, true]) {
      if (released) memory.remove(first);
      const again = memory.add(text(length));
      expect([again.reuse(), again.computed]).toEqual([blocks * 128, blocks * 128]);
      memory.check();
      memory.read(again, 512);
      memory.check();
      memory.remove(again);
    }
    expect(memory.groups.map(({ pool }) => pool.inUse)).toEqual([0, 0]);
  });

  test.each<[string, number, number]>([
    ['in its window', 5950, 46 * 128],
    ['behind a checkpoint', 5000, 4096],
    ['before every checkpoint', 3000, 128], // the sink block needs nothing else
  ])('and goes on differently %s', (_, from, reused) => {
    const memory = new Memory(paper, 200);
    const first = memory.add(text(6000));
    memory.read(first, 512);
    memory.remove(first);
    const other = memory.add(text(6000, 1, from));
    expect(other.reuse()).toBe(reused);
    memory.read(other, 512);
    memory.check();
    memory.remove(other);
    // Where two have parted a third may, too: the second has left its window there.
    const third = memory.add(text(6000, 2, from));
    expect(third.reuse()).toBe(Math.floor(from / 128) * 128);
    memory.check();
  });

  test('a limit holds', () => {
    const memory = new Memory(paper, 200);
    memory.read(memory.add(text(900)), 512);
    const again = memory.add(text(900));
    expect(again.reuse(400)).toBe(384);
    memory.check();
  });

  test('what was generated is found by the next turn', () => {
    const memory = new Memory(paper, 200);
    const first = memory.add(text(4700));
    memory.read(first, 512);
    for (const token of text(300, 3)) {
      first.tokens.push(token);
      memory.read(first, 1);
    }
    const next = memory.add([...first.tokens, ...text(200, 4)]);
    memory.remove(first);
    expect(next.reuse()).toBe(Math.floor(5000 / 128) * 128);
    memory.check();
  });

  test('churn in the streaming group takes nothing from the full group', () => {
    const memory = new Memory(paper, 200);
    const [full, streaming] = memory.groups.map(({ pool }) => pool);
    memory.read(memory.add(text(3000)), 512);
    const before = full!.available;
    memory.remove(memory.sequences[0]!);
    expect(full!.cached).toBe(23);
    for (let kind = 1; kind < 4; kind++) {
      const other = memory.add(text(4000, kind));
      memory.read(other, 4000);
      memory.remove(other);
    }
    expect(full!.available).toBe(200);
    expect(before).toBe(200 - 24);
    expect(streaming!.available).toBe(200);
    const again = memory.add(text(3000));
    expect(again.reuse()).toBe(23 * 128);
    memory.check();
  });
});

test('a step that fails publishes nothing', () => {
  const memory = new Memory(paper, 200);
  const first = memory.add(text(2000));
  memory.step(first, 700)();
  memory.step(first, 320, true);
  memory.remove(first);
  const again = memory.add(text(2000));
  expect(again.reuse()).toBe(5 * 128);
  memory.check();
});

test('a landing after a release is not believed', () => {
  const memory = new Memory(paper, 200);
  const sequence = memory.add(text(2000));
  const late = memory.step(sequence, 1000, true);
  sequence.release();
  memory.step(sequence, 500)();
  late();
  const again = memory.add(text(2000));
  expect(again.reuse()).toBe(3 * 128);
  memory.check();
});

test('of the full group the ends of prefixes are given up first, those used longest ago', () => {
  const memory = new Memory({ ...paper, kinds: ['full'] }, 20);
  for (const kind of [1, 2]) {
    const one = memory.add(text(1025, kind));
    memory.read(one, 512);
    memory.remove(one);
  }
  const used = memory.add(text(1025, 1));
  expect(used.reuse()).toBe(1024);
  memory.remove(used);
  const large = memory.add(text(1280, 3)); // 10 blocks: 4 free ones and 6 of the second
  memory.read(large, 512);
  memory.check();
  const [first, second] = [1, 2].map((kind) => memory.add(text(1025, kind)));
  expect([first!.reuse(), second!.reuse()]).toEqual([1024, 2 * 128]);
  memory.check();
});

test('a window is of no use without the sinks', () => {
  const memory = new Memory(paper, 80);
  const [full, streaming] = memory.groups;
  const [first, second] = [memory.add(text(2000)), memory.add(text(2000))];
  memory.step(first, 200)(); // the first has published block 0, the second all others
  memory.read(second, 512);
  memory.remove(first);
  memory.remove(second);
  const { pool } = streaming!;
  // All that are free, and one more: the block that was left longest ago is the sink.
  for (let i = pool.available - pool.cached; i >= 0; i--) pool.allocate();
  expect(full!.pool.cached).toBe(15);
  expect(memory.cache.match(text(2000), 15)).toEqual({ path: [], seen: 15 });
});

test('nothing is left of prefixes whose blocks are gone', () => {
  const memory = new Memory(paper, 30);
  for (let kind = 0; kind < 20; kind++) {
    const one = memory.add(text(2500, kind));
    one.reuse();
    memory.read(one, 512);
    memory.check();
    memory.remove(one);
  }
  const sizeOf = (prefix: unknown): number => {
    const { children } = prefix as { children: Map<number, unknown[]> };
    return [...children.values()].flat().reduce<number>((sum, one) => sum + sizeOf(one), 1);
  };
  expect(sizeOf(memory.cache.root)).toBeLessThanOrEqual(1 + 30);
});

describe('a fork', () => {
  test.each([1, 100, 128, 129, 1024, 1100, 3000])('at %i tokens shares, then parts', (length) => {
    const memory = new Memory(paper, 200);
    const parent = memory.add(text(length));
    memory.read(parent, 512);
    const before = memory.groups.map(({ pool }) => pool.inUse);
    const forks = [1, 2, 3].map(() => memory.fork(parent));
    expect(memory.groups.map(({ pool }) => pool.inUse)).toEqual(before);
    [parent, ...forks].forEach((one, i) => {
      one.tokens.push(...text(300, 5 + i));
      memory.read(one, 1);
      memory.check();
    });
    for (const one of [parent, ...forks]) memory.remove(one);
    expect(memory.groups.map(({ pool }) => pool.inUse)).toEqual([0, 0]);
  });

  test('the last one writes to the block without a copy', () => {
    const memory = new Memory(paper, 200);
    const parent = memory.add(text(100));
    memory.read(parent, 512);
    const fork = memory.fork(parent);
    const block = fork.blocksOf(memory.groups[0]!).block(0);
    fork.tokens.push(1);
    parent.tokens.push(2);
    memory.read(fork, 1);
    memory.read(parent, 1);
    expect(parent.blocksOf(memory.groups[0]!).block(0)).toBe(block);
    expect(fork.blocksOf(memory.groups[0]!).block(0)).not.toBe(block);
    memory.check();
  });

  test('knows what its parent has on the way not at all', () => {
    const memory = new Memory(paper, 200);
    const parent = memory.add(text(300));
    memory.step(parent, 200)();
    const land = memory.step(parent, 100);
    const fork = memory.fork(parent);
    expect([fork.computed, parent.computed]).toEqual([200, 300]);
    land();
    memory.read(fork, 50);
    memory.check();
  });
});

describe('other tokens', () => {
  test.each<[string, number, number]>([
    ['in the last block', 4650, 4650],
    ['in the block before', 4600, 0], // whose first query reads what the last block's do not
    ['before the window', 3000, 0],
  ])('%s', (_, from, kept) => {
    const memory = new Memory(paper, 200);
    const sequence = memory.add(text(4700));
    memory.read(sequence, 512);
    const could = sequence.turnTo(text(4900, 1, from));
    expect(could).toBe(kept > 0);
    if (could) expect(sequence.computed).toBe(kept);
    else sequence.release();
    memory.check();
    memory.read(sequence, 512);
    memory.check();
    memory.remove(sequence);
    const again = memory.add(text(4900, could ? 1 : 0, could ? from : 0));
    expect(again.reuse()).toBeGreaterThan(4096);
    memory.check();
  });

  test('the same tokens again leave one to compute', () => {
    const memory = new Memory(paper, 200);
    const sequence = memory.add(text(700));
    memory.read(sequence, 512);
    expect(sequence.turnTo(text(700))).toBe(true);
    expect(sequence.computed).toBe(699);
    memory.read(sequence, 512);
    memory.check();
  });
});

test('without a cache nothing is kept, and nothing taken', () => {
  const memory = new Memory(paper, 50, false);
  const first = memory.add(text(1500));
  memory.read(first, 512);
  memory.remove(first);
  expect(memory.groups.map(({ pool }) => pool.cached)).toEqual([0, 0]);
  expect(memory.add(text(1500)).reuse()).toBe(0);
});

// ---- Random use ----

interface Use {
  action: 'add' | 'read' | 'write' | 'fork' | 'turn' | 'remove' | 'restart' | 'fail';
  sequence: number;
  /** Tokens, or where texts part. */
  size: number;
  kind: number;
  late: boolean;
}

const use = fc.record<Use>({
  action: fc.constantFrom<Use['action']>(
    ...(['add', 'add', 'read', 'read', 'read', 'write', 'write', 'fork'] as const),
    ...(['turn', 'remove', 'restart', 'fail'] as const),
  ),
  sequence: fc.nat(9),
  size: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 1500 })),
  kind: fc.nat(2),
  late: fc.boolean(),
});

/** Where this many blocks are missing, what the engine does: someone makes room. */
function makeRoom(memory: Memory, sequence: Sequence, count: number): boolean {
  while (sequence.missing(count) !== undefined) {
    const other = memory.sequences.find((one) => one !== sequence && one.computed > 0);
    if (other === undefined) return false;
    other.release();
  }
  return true;
}

function run(memory: Memory, uses: readonly Use[]): void {
  let late: (() => void) | undefined;
  for (const { action, sequence: at, size, kind, late: isLate } of uses) {
    const sequence = memory.sequences[at % Math.max(1, memory.sequences.length)];
    if (action === 'add' && memory.sequences.length < 6) {
      memory.add(text(size + 1, kind, size >> 1)).reuse();
    } else if (sequence === undefined) continue;
    else if (action === 'write') sequence.tokens.push(...text(size % 200, kind));
    else if (action === 'fork' && memory.sequences.length < 6) {
      if (sequence.rewind(Infinity)) memory.fork(sequence);
    } else if (action === 'turn') {
      if (!sequence.turnTo(text(size + 1, kind, size >> 1))) sequence.release();
    } else if (action === 'remove') memory.remove(sequence);
    else if (action === 'restart') {
      sequence.release();
      sequence.reuse();
    } else {
      const count = Math.min(size, sequence.tokens.length - sequence.computed);
      if (count === 0 || !makeRoom(memory, sequence, count)) continue;
      const land = memory.step(sequence, count, action === 'fail');
      if (action === 'fail') memory.remove(sequence);
      else if (isLate && late === undefined) late = land;
      else {
        late?.();
        late = undefined;
        land();
      }
    }
    memory.check();
  }
}

test.each(shapes)('%s: random use keeps every row, and counts every block', (_, shape) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 14, max: 60 }),
      fc.array(use, { minLength: 20, maxLength: 120, size: 'max' }),
      (capacity, uses) => {
        const memory = new Memory(shape, capacity);
        run(memory, uses);
        for (const sequence of [...memory.sequences]) memory.remove(sequence);
        memory.check();
        for (const { pool } of memory.groups) expect(pool.available).toBe(capacity);
      },
    ),
    { numRuns: 12 },
  );
});

test('blocksFor counts what a sequence holds', () => {
  const memory = new Memory(paper, 60);
  const sequence = memory.add(text(1500));
  memory.read(sequence, 1500);
  expect(sequence.blocksOf(memory.groups[0]!).held).toBe(blocksFor(1500));
});
