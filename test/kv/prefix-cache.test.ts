import fc from 'fast-check';
import type { Sequence } from '../../lib/engine/sequence';
import { blocksFor } from '../../lib/kv/layer-group';
import { Memory, type Shape } from '../support/kv-memory';

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
