import { Sequence } from '../../lib/engine/sequence';
import { groupRange, LayerGroup, type LayerGroupKind } from '../../lib/kv/layer-group';
import { PrefixCache } from '../../lib/kv/prefix-cache';
import type { Device } from '../../lib/native/device';

const blockTokens = 128;

const device = { allocate: () => ({}) } as unknown as Device;

export interface Shape {
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
export class Memory {
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
