import type { CachedContents } from './block-pool';
import { HostCache, type HostMemory } from './host-cache';
import { blockTokens, type LayerGroup } from './layer-group';
import { Prefix } from './prefix';

/** Blocks between two checkpoints of a streaming group's window: one in 4,096 tokens. */
export const checkpointBlocks = 4096 / blockTokens;

/** What the cache holds of some tokens. */
export interface Match {
  /** The prefixes of one, two, ... blocks, up to the longest from which every group can go on. */
  path: readonly Prefix[];
  /** Blocks of the longest prefix that the full group holds. */
  seen: number;
}

/**
 * Finds the KV blocks of prefixes that were computed before: a tree of blocks of 128 tokens, compared
 * token by token, so that a hit is never a coincidence of hashes. Its blocks belong to the pools,
 * which take them back, least recently used first, when they need room (docs/kv-cache.md).
 */
export class PrefixCache {
  readonly root: Prefix;
  /** Where blocks go that the pools take back; undefined: they are lost. */
  readonly host: HostCache | undefined;

  /** `hostBlocks`: what the host's memory has room for, by group. */
  constructor(
    readonly groups: readonly LayerGroup[],
    host?: HostMemory & { blocks: readonly number[] },
  ) {
    this.root = Prefix.root(groups.length);
    this.host = host && new HostCache(host, groups, host.blocks, (prefix) => this.prune(prefix));
  }

  /**
   * The longest prefix of at most `most` blocks from which a sequence can go on; `withHost`: also
   * where some of it has to be copied from the host.
   */
  match(tokens: readonly number[], most: number, withHost = false): Match {
    const isThere = ({ blocks, hosted }: Prefix, g: number) =>
      blocks[g]! >= 0 || (withHost && hosted[g]! >= 0);
    const path: Prefix[] = [];
    const scans = this.groups.map((group) => new Scan(group));
    const needsNot = (next: Prefix) => (group: LayerGroup, g: number) =>
      group.kind !== 'full' || isThere(next, g);
    let usable = 0;
    for (let at = this.root; path.length < most; path.push(at)) {
      const next = at.child(tokens, path.length);
      if (next === undefined || !this.groups.every(needsNot(next))) break;
      at = next;
      const goOn = scans.filter((scan, g) => scan.add(isThere(next, g)));
      if (goOn.length === scans.length) usable = path.length + 1;
    }
    return { path: path.slice(0, usable), seen: path.length };
  }

  /** The prefix that is longer by block `index` of the tokens; it is there from now on. */
  longer(prefix: Prefix, tokens: readonly number[], index: number): Prefix {
    return prefix.child(tokens, index) ?? prefix.addChild(tokens, index);
  }

  /** A held block has the contents of a prefix's last tokens; the first one that has them is cached. */
  publish(prefix: Prefix, group: number, block: number): void {
    if (prefix.blocks[group]! >= 0) return;
    prefix.blocks[group] = block;
    this.groups[group]!.pool.cache(block, new PrefixBlock(this, prefix, group));
  }

  pin(prefix: Prefix): Prefix {
    prefix.pins++;
    return prefix;
  }

  unpin(prefix: Prefix): void {
    prefix.pins--;
    this.prune(prefix);
  }

  /** Forgets a prefix that nothing is left of, and those that only led to it. */
  prune(prefix: Prefix): void {
    for (let at = prefix; at.parent !== undefined && at.isSpare; at = at.parent) at.remove();
  }
}

/** Whether a group's queries can go on behind each prefix of a growing path. */
class Scan {
  private depth = 0;
  private sinks = 0; // blocks held at the start
  private run = 0; // blocks held in a row at the end

  constructor(private readonly group: LayerGroup) {}

  /** The path is longer by a block, which the cache holds or not. */
  add(isHeld: boolean): boolean {
    const { kind, range } = this.group;
    this.run = isHeld ? this.run + 1 : 0;
    if (this.sinks === this.depth++ && isHeld) this.sinks++;
    if (kind === 'full') return true;
    const sinks = Math.min(range.sinkBlocks, this.depth);
    return this.sinks >= sinks && this.run >= Math.min(range.localBlocks - 1, this.depth - sinks);
  }
}

/** A block of the cache, as its pool sees it. */
class PrefixBlock implements CachedContents {
  constructor(
    private readonly cache: PrefixCache,
    private readonly prefix: Prefix,
    private readonly group: number,
  ) {}

  get kept(): boolean {
    return this.prefix.kept;
  }

  /** In full groups leaves first: a longer prefix is of no use without this one. */
  victim(): number {
    const { group } = this;
    const { pool, kind } = this.cache.groups[group]!;
    if (kind === 'streaming') return this.prefix.blocks[group]!;
    const isIdle = ({ blocks }: Prefix) => blocks[group]! >= 0 && !pool.isHeld(blocks[group]!);
    let leaf = this.prefix;
    for (let next: Prefix | undefined = leaf; next; next = leaf.findChild(isIdle)) leaf = next;
    return leaf.blocks[group]!;
  }

  /** Nobody can go on from here without the full group's block: then the window is of no use. */
  forgotten(): void {
    const { cache, prefix, group } = this;
    const block = prefix.blocks[group]!;
    const { kind, range } = cache.groups[group]!;
    const isFull = kind === 'full';
    prefix.blocks[group] = -1;
    const isUseful = isFull || prefix.kept || prefix.isWithin(range.sinkBlocks);
    if (isUseful) cache.host?.save(group, prefix, block);
    if (isFull) cache.groups.forEach(({ pool }, g) => pool.forget(prefix.blocks[g]!));
    cache.prune(prefix);
  }
}
