import type { CachedContents } from './block-pool';
import { blockTokens, type LayerGroup } from './layer-group';

/** Blocks between two checkpoints of a streaming group's window: one in 4,096 tokens. */
export const checkpointBlocks = 4096 / blockTokens;

/** A prefix of whole blocks, and the KV blocks that hold its last 128 tokens. */
export class Prefix {
  readonly children = new Map<string, Prefix>();
  /** Whoever goes on from here; it stays findable for them. */
  pins = 0;
  /** Block ids by group, -1 where the cache holds none. */
  readonly blocks: number[];
  /** Streaming blocks are part of a checkpoint: kept when the window of a sequence leaves them. */
  kept = false;

  constructor(
    readonly parent: Prefix | undefined,
    /** Its last 128 tokens. */
    readonly key: string,
    groups: number,
  ) {
    this.blocks = new Array<number>(groups).fill(-1);
  }
}

/** What the cache holds of some tokens. */
export interface Match {
  /** The prefixes of one, two, ... blocks that can be gone on from, in every group. */
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

  constructor(readonly groups: readonly LayerGroup[]) {
    this.root = new Prefix(undefined, '', groups.length);
  }

  /** The longest prefix of at most `most` blocks from which a sequence can go on. */
  match(tokens: readonly number[], most: number): Match {
    const path: Prefix[] = [];
    const runs = this.groups.map(() => 0); // blocks in a row that end here
    let usable = 0;
    for (let at = this.root; path.length < most; path.push(at)) {
      const next = at.children.get(keyOf(tokens, path.length));
      if (next === undefined || !this.holdsFull(next)) break;
      at = next;
      const depth = path.length + 1;
      this.groups.forEach((_, g) => (runs[g] = next.blocks[g]! < 0 ? 0 : runs[g]! + 1));
      const isUsable = ({ kind, range }: LayerGroup, g: number) => {
        if (kind === 'full') return true;
        const { sinkBlocks, localBlocks } = range;
        const sinks = [...path.slice(0, sinkBlocks), next].slice(0, sinkBlocks);
        return (
          sinks.every((sink) => sink.blocks[g]! >= 0) &&
          runs[g]! >= Math.min(localBlocks - 1, depth - sinks.length)
        );
      };
      if (this.groups.every(isUsable)) usable = depth;
    }
    return { path: path.slice(0, usable), seen: path.length };
  }

  /** The prefix that is longer by block `index` of the tokens; it is there from now on. */
  longer(prefix: Prefix, tokens: readonly number[], index: number): Prefix {
    const key = keyOf(tokens, index);
    let child = prefix.children.get(key);
    if (child === undefined) {
      child = new Prefix(prefix, key, this.groups.length);
      prefix.children.set(key, child);
    }
    return child;
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

  /** Forgets prefixes that nothing is left of. */
  prune(prefix: Prefix): void {
    for (let at = prefix; ;) {
      const { parent, key, pins, blocks, children } = at;
      const isEmpty = pins === 0 && children.size === 0 && blocks.every((block) => block < 0);
      if (parent === undefined || !isEmpty) return;
      parent.children.delete(key);
      at = parent;
    }
  }

  private holdsFull({ blocks }: Prefix): boolean {
    return this.groups.every(({ kind }, g) => kind !== 'full' || blocks[g]! >= 0);
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
    const { pool, kind } = this.cache.groups[group] as LayerGroup;
    if (kind === 'streaming') return this.prefix.blocks[group]!;
    const isIdle = ({ blocks }: Prefix) => blocks[group]! >= 0 && !pool.isHeld(blocks[group]!);
    let leaf = this.prefix;
    for (let next: Prefix | undefined = leaf; next; next = [...leaf.children.values()].find(isIdle))
      leaf = next;
    return leaf.blocks[group]!;
  }

  /** Nobody can go on from here without the full group's block: then the window is of no use. */
  forgotten(): void {
    const { cache, prefix } = this;
    prefix.blocks[this.group] = -1;
    if (cache.groups[this.group]!.kind === 'full') {
      cache.groups.forEach(({ pool }, g) => pool.forget(prefix.blocks[g]!));
    }
    cache.prune(prefix);
  }
}

function keyOf(tokens: readonly number[], block: number): string {
  const from = block * blockTokens;
  const units = new Uint16Array(2 * blockTokens);
  for (let i = 0; i < blockTokens; i++) {
    const token = tokens[from + i]!;
    units[2 * i] = token;
    units[2 * i + 1] = token >>> 16;
  }
  return String.fromCharCode(...units);
}
