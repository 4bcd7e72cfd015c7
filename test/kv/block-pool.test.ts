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

interface Model {
  capacity: number;
  held: Set<number>;
}
type Command = fc.Command<Model, BlockPool>;

function checkUse({ held }: Model, pool: BlockPool): void {
  if (pool.inUse !== held.size) throw new Error(`${pool.inUse} in use, ${held.size} held`);
}

function allocate(): Command {
  return {
    check: () => true,
    run(model, pool) {
      if (model.held.size === model.capacity) {
        expect(() => pool.allocate()).toThrow(/KV blocks are held/);
        return;
      }
      const block = pool.allocate();
      if (model.held.has(block) || !(block >= 0 && block < model.capacity))
        throw new Error(`got block ${block}`);
      model.held.add(block);
      checkUse(model, pool);
    },
    toString: () => 'allocate',
  };
}

/** Releases any block, held or not. */
function release(pick: number): Command {
  return {
    check: (model) => model.capacity > 0,
    run(model, pool) {
      const block = pick % model.capacity;
      if (model.held.delete(block)) pool.release(block);
      else expect(() => pool.release(block)).toThrow(/released twice/);
      checkUse(model, pool);
    },
    toString: () => `release(${pick})`,
  };
}

test('random use agrees with a set', () => {
  const commands = fc.commands(
    [fc.constant(allocate()), fc.constant(allocate()), fc.nat().map(release)],
    { maxCommands: 150, size: 'max' },
  );
  fc.assert(
    fc.property(fc.nat(24), commands, (capacity, run) => {
      const setup = () => ({
        model: { capacity, held: new Set<number>() },
        real: new BlockPool(capacity),
      });
      fc.modelRun(setup, run);
    }),
    { numRuns: 60 },
  );
});
