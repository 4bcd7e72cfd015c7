import { LozaError } from '../errors';
import { blocksFor, blockTokens, type LayerGroup } from './layer-group';
import type { Prefix } from './prefix';
import type { PrefixCache } from './prefix-cache';

/** Blocks that are copied back from the host before others may go there. */
const restoredTogether = 64;

/** Enqueues a copy of the contents of one block of a group into another. */
export type CopyBlock = (group: LayerGroup, from: number, to: number) => void;

/** The blocks that one sequence holds in one group, by absolute block index; -1 where it holds none. */
export class SequenceBlocks {
  private readonly table: number[] = [];
  private trimmed = 0; // blocks below this were given back, sinks excepted
  /** Blocks that left the window before their step was known to be done: the cache wants them then. */
  private readonly parked = new Map<number, number>();

  constructor(readonly group: LayerGroup) {}

  get length(): number {
    return this.table.length;
  }

  /** Blocks held now. */
  get held(): number {
    return this.table.length - this.freed;
  }

  /** Blocks that full attention would hold and this group gave back. */
  get freed(): number {
    return Math.max(0, this.trimmed - this.group.range.sinkBlocks);
  }

  block(index: number): number {
    return this.table[index] ?? -1;
  }

  /** Cache row of a position. */
  slot(position: number): number {
    const block = this.block(Math.floor(position / blockTokens));
    return block < 0 ? -1 : block * blockTokens + (position % blockTokens);
  }

  /** Blocks that `own` and `extend` would take from the pool to write positions from `from` to `tokens`. */
  missing(from: number, tokens: number): number {
    let count = Math.max(0, blocksFor(tokens) - this.table.length);
    for (let index = Math.floor(from / blockTokens); index < this.table.length; index++) {
      if (this.isShared(index)) count++;
    }
    return count;
  }

  /** Puts copies in the place of blocks with positions from `from` on that someone else can read. */
  own(from: number, copy: CopyBlock): void {
    const { pool } = this.group;
    for (let index = Math.floor(from / blockTokens); index < this.table.length; index++) {
      if (!this.isShared(index)) continue;
      const shared = this.block(index);
      const own = pool.allocate();
      if (index * blockTokens < from) copy(this.group, shared, own);
      this.table[index] = own;
      pool.release(shared);
    }
  }

  /** Makes room for positions below `tokens`. */
  extend(tokens: number): void {
    while (this.table.length < blocksFor(tokens)) this.table.push(this.group.pool.allocate());
  }

  /**
   * Gives back the blocks that no query at `nextPosition` or later can read. Those that are still to
   * be published and that `wanted` names are kept until then.
   */
  trim(nextPosition: number, wanted: (index: number) => boolean = () => false): void {
    if (this.group.kind === 'full') return;
    const { pool, range } = this.group;
    const end = Math.min(this.group.firstLocalBlock(nextPosition), this.table.length);
    for (let index = Math.max(this.trimmed, range.sinkBlocks); index < end; index++) {
      const block = this.block(index);
      if (wanted(index)) this.parked.set(index, block);
      else pool.drop(block);
      this.table[index] = -1;
    }
    this.trimmed = Math.max(this.trimmed, end);
  }

  /** Block `index` holds what the prefix ends with. */
  publish(index: number, prefix: Prefix, cache: PrefixCache, group: number): void {
    const parked = this.parked.get(index);
    const block = parked ?? this.block(index);
    if (block >= 0) cache.publish(prefix, group, block);
    if (parked === undefined) return;
    this.group.pool.release(parked);
    this.parked.delete(index);
  }

  /**
   * Of the blocks that queries behind a cached prefix can read: those that have to come from the
   * host, and how many `available` ones are no longer that when all are held.
   */
  adoptable(path: readonly Prefix[], group: number): { hosted: Prefix[]; taken: number } {
    const { pool } = this.group;
    const needed = path.filter((_, index) => this.isNeeded(path.length, index));
    const hosted = needed.filter(({ blocks }) => blocks[group]! < 0);
    const held = needed.filter(({ blocks }) => blocks[group]! >= 0 && pool.isHeld(blocks[group]!));
    return { hosted, taken: needed.length - held.length };
  }

  /** Takes them; `cache` brings back those that are on the host, where they must be held. */
  adopt(path: readonly Prefix[], group: number, cache: PrefixCache): void {
    const { pool, kind } = this.group;
    const absent: number[] = [];
    path.forEach(({ blocks }, index) => {
      const isNeeded = this.isNeeded(path.length, index);
      const block = isNeeded ? blocks[group]! : -1;
      if (block >= 0) pool.retain(block);
      else if (isNeeded) absent.push(index);
      this.table.push(block);
    });
    const first = this.group.firstLocalBlock(path.length * blockTokens);
    this.trimmed = kind === 'full' ? 0 : Math.min(first, path.length);
    const lost = absent.find((index) => path[index]!.hosted[group]! < 0);
    if (lost !== undefined) throw new LozaError('ERR_LOZA_INTERNAL', `KV block ${lost} is nowhere`);
    // A few at a time: whose blocks are taken for them go where they come from.
    for (let from = 0; from < absent.length; from += restoredTogether) {
      const part = absent.slice(from, from + restoredTogether);
      for (const index of part) this.table[index] = pool.allocate();
      const copies = part.map((index) => ({ prefix: path[index]!, block: this.block(index) }));
      for (const { prefix, block } of copies) cache.publish(prefix, group, block);
      cache.host?.restore(group, copies);
    }
  }

  /** Whether everything that a query at `position` may read is still held. */
  reaches(position: number): boolean {
    const { kind, range } = this.group;
    const first = Math.max(range.sinkBlocks, this.group.firstLocalBlock(position));
    return kind === 'full' || this.trimmed <= first;
  }

  /** Gives back the blocks without positions below `tokens`. */
  cut(tokens: number): void {
    for (const [index, block] of this.parked) {
      if ((index + 1) * blockTokens <= tokens) continue;
      this.group.pool.release(block);
      this.parked.delete(index);
    }
    for (const block of this.table.splice(blocksFor(tokens)).reverse()) {
      if (block >= 0) this.group.pool.release(block);
    }
  }

  /** The same blocks, held once more; they must reach `tokens`. */
  fork(tokens: number): SequenceBlocks {
    if (!this.reaches(tokens)) {
      throw new LozaError('ERR_LOZA_INTERNAL', `Keys before position ${tokens} are gone`);
    }
    const fork = new SequenceBlocks(this.group);
    for (const block of this.table.slice(0, blocksFor(tokens))) {
      if (block >= 0) this.group.pool.retain(block);
      fork.table.push(block);
    }
    fork.trimmed = this.trimmed;
    return fork;
  }

  /** Last blocks first: cached prefixes are given up from their ends. */
  release(): void {
    this.cut(0);
    this.trimmed = 0;
  }

  /** Whether a query behind `length` blocks can read this one. */
  private isNeeded(length: number, index: number): boolean {
    const { kind, range } = this.group;
    if (kind === 'full' || index < range.sinkBlocks) return true;
    return index >= this.group.firstLocalBlock(length * blockTokens);
  }

  private isShared(index: number): boolean {
    return !this.group.pool.isPrivate(this.block(index));
  }
}
