import { blockTokens } from './layer-group';

/** A prefix of whole blocks, and the KV blocks that hold its last 128 tokens. */
export class Prefix {
  /** Whoever goes on from here; it stays findable for them. */
  pins = 0;
  /** Block ids by group, -1 where the cache holds none. */
  readonly blocks: number[];
  /** Slots of the host's memory by group, -1 where it has none of it. */
  readonly hosted: number[];
  /** Streaming blocks are part of a checkpoint: kept when the window of a sequence leaves them. */
  kept = false;
  /** By a hash of their last 128 tokens. */
  private readonly children = new Map<number, Prefix[]>();

  private constructor(
    readonly parent: Prefix | undefined,
    /** Its last 128 tokens. */
    private readonly tokens: Int32Array,
    groups: number,
  ) {
    this.blocks = new Array<number>(groups).fill(-1);
    this.hosted = new Array<number>(groups).fill(-1);
  }

  /** The prefix of no tokens. */
  static root(groups: number): Prefix {
    return new Prefix(undefined, new Int32Array(blockTokens), groups);
  }

  /** Whether nothing hangs on it. */
  get isSpare(): boolean {
    const isNowhere = (place: number) => place < 0;
    if (this.pins > 0 || this.children.size > 0) return false;
    return this.blocks.every(isNowhere) && this.hosted.every(isNowhere);
  }

  /** Whether it has at most so many blocks. */
  isWithin(blocks: number): boolean {
    return this.parent === undefined || (blocks > 0 && this.parent.isWithin(blocks - 1));
  }

  /** The prefix that is longer by block `index` of the tokens. */
  child(tokens: readonly number[], index: number): Prefix | undefined {
    const from = index * blockTokens;
    return this.children.get(hashOf(tokens, from))?.find((child) => child.endsWith(tokens, from));
  }

  addChild(tokens: readonly number[], index: number): Prefix {
    const from = index * blockTokens;
    const last = new Int32Array(tokens.slice(from, from + blockTokens));
    const child = new Prefix(this, last, this.blocks.length);
    const hash = hashOf(last, 0);
    this.children.set(hash, [...(this.children.get(hash) ?? []), child]);
    return child;
  }

  findChild(isWanted: (child: Prefix) => boolean): Prefix | undefined {
    for (const alike of this.children.values()) {
      const found = alike.find(isWanted);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** Takes it out of its parent's children. */
  remove(): void {
    const among = this.parent?.children;
    const hash = hashOf(this.tokens, 0);
    const others = among?.get(hash)?.filter((one) => one !== this) ?? [];
    if (others.length > 0) among?.set(hash, others);
    else among?.delete(hash);
  }

  private endsWith(tokens: readonly number[], from: number): boolean {
    for (let i = 0; i < blockTokens; i++) if (this.tokens[i] !== tokens[from + i]) return false;
    return true;
  }
}

/** FNV-1a over a block of tokens. */
function hashOf(tokens: ArrayLike<number>, from: number): number {
  let hash = 0x811c9dc5;
  for (let i = from; i < from + blockTokens; i++) hash = Math.imul(hash ^ tokens[i]!, 0x01000193);
  return hash;
}
