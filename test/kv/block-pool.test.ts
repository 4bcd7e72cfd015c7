import fc from 'fast-check';
import { BlockPool } from '../../lib/kv/block-pool';
import { expectLozaError } from '../support/errors';

/** Every block the pool gives until it has none left. */
function drain(pool: BlockPool): number[] {
  return Array.from({ length: pool.capacity - pool.inUse }, () => pool.allocate());
}

test.each([0, 1, 2, 7, 1000])('a pool of %i gives each block once', async (capacity) => {
  const pool = new BlockPool(capacity);
  expect(pool.inUse).toBe(0);
  const blocks = drain(pool);
  expect(blocks.sort((a, b) => a - b)).toEqual(Array.from({ length: capacity }, (_, i) => i));
  expect(pool.inUse).toBe(capacity);
  await expectLozaError(() => pool.allocate(), 'ERR_LOZA_OUT_OF_MEMORY', `All ${capacity} `);
  expect(pool.inUse).toBe(capacity);
});

test.each([
  ['released twice', 2],
  ['never given', 5],
  ['negative', -1],
  ['past the end', 8],
  ['not a number', NaN],
  ['between two blocks', 0.5],
])('a block %s cannot be released', async (_, block) => {
  const pool = new BlockPool(8);
  for (let i = 0; i < 4; i++) pool.allocate();
  if (block === 2) pool.release(2);
  const { inUse } = pool;
  await expectLozaError(() => pool.release(block), 'ERR_LOZA_INTERNAL', `KV block ${block} `);
  expect(pool.inUse).toBe(inUse);
  expect(new Set(drain(pool)).size).toBe(8 - inUse);
});

// ---- Random use against a plain model ----

interface Model {
  capacity: number;
  holders: Map<number, number>;
  /** Blocks whose contents are cached, and whether these are kept. */
  cached: Map<number, boolean>;
  /** Cached blocks without a holder, the one left longest ago first. */
  idle: number[];
}
type Command = fc.Command<Model, BlockPool>;

/** What the pool told of contents that are gone. */
const forgotten: number[] = [];

function check({ capacity, holders, cached, idle }: Model, pool: BlockPool): void {
  const facts = { inUse: pool.inUse, cached: pool.cached, available: pool.available };
  const { size } = holders;
  expect(facts).toEqual({ inUse: size, cached: idle.length, available: capacity - size });
  for (let block = 0; block < capacity; block++) {
    const isPrivate = holders.get(block) === 1 && !cached.has(block);
    if (pool.isHeld(block) !== holders.has(block) || pool.isPrivate(block) !== isPrivate)
      throw new Error(`block ${block} is held or private by mistake`);
  }
}

function command(name: string, run: (model: Model, pool: BlockPool) => void): Command {
  return {
    check: ({ capacity }) => capacity > 0,
    run(model, pool) {
      run(model, pool);
      check(model, pool);
    },
    toString: () => name,
  };
}

const allocate = command('allocate', (model, pool) => {
  const { capacity, holders, cached, idle } = model;
  if (holders.size === capacity) {
    expect(() => pool.allocate()).toThrow(/KV blocks are held/);
    return;
  }
  const before = forgotten.length;
  const block = pool.allocate();
  if (holders.has(block) || !(block >= 0 && block < capacity)) throw new Error(`got ${block}`);
  if (holders.size + idle.length === capacity) {
    expect(block).toBe(idle.shift());
    expect(forgotten.slice(before)).toEqual([block]);
    cached.delete(block);
  }
  expect(idle).not.toContain(block);
  holders.set(block, 1);
});

/** Some of these on any block, whatever its state. */
const onBlock: Record<string, (model: Model, pool: BlockPool, block: number) => void> = {
  retain({ holders, idle }, pool, block) {
    const isIdle = idle.includes(block);
    if (!holders.has(block) && !isIdle) {
      expect(() => pool.retain(block)).toThrow(/not there to be held/);
      return;
    }
    pool.retain(block);
    holders.set(block, (holders.get(block) ?? 0) + 1);
    if (isIdle) idle.splice(idle.indexOf(block), 1);
  },
  release: (model, pool, block) => leave(model, pool, block, false),
  drop: (model, pool, block) => leave(model, pool, block, true),
  cache({ holders, cached }, pool, block) {
    if (!holders.has(block) || cached.has(block)) return;
    const kept = block % 2 === 0;
    pool.cache(block, { kept, victim: () => block, forgotten: () => void forgotten.push(block) });
    cached.set(block, kept);
  },
  forget({ cached, idle }, pool, block) {
    const before = forgotten.length;
    pool.forget(block);
    expect(forgotten.slice(before)).toEqual(cached.has(block) ? [block] : []);
    cached.delete(block);
    if (idle.includes(block)) idle.splice(idle.indexOf(block), 1);
  },
};

function leave({ holders, cached, idle }: Model, pool: BlockPool, block: number, drops: boolean) {
  const count = holders.get(block);
  const call = () => (drops ? pool.drop(block) : pool.release(block));
  if (count === undefined) {
    expect(call).toThrow(/released twice/);
    return;
  }
  call();
  if (count > 1) return void holders.set(block, count - 1);
  holders.delete(block);
  if (drops && cached.get(block) === false) cached.delete(block);
  if (cached.has(block)) idle.push(block);
}

test('random use agrees with sets', () => {
  const blockCommand = fc
    .tuple(fc.constantFrom(...Object.keys(onBlock)), fc.nat())
    .map(([name, pick]) =>
      command(`${name}(${pick})`, (model, pool) =>
        onBlock[name]!(model, pool, pick % model.capacity),
      ),
    );
  const commands = fc.commands([fc.constant(allocate), fc.constant(allocate), blockCommand], {
    maxCommands: 150,
    size: 'max',
  });
  fc.assert(
    fc.property(fc.nat(12), commands, (capacity, run) => {
      const model = { capacity, holders: new Map(), cached: new Map(), idle: [] };
      fc.modelRun(() => ({ model, real: new BlockPool(capacity) }), run);
    }),
    { numRuns: 60 },
  );
});
