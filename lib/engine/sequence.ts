import { LozaError } from '../errors';
import { blocksFor, blockTokens, type LayerGroup } from '../kv/layer-group';
import type { Prefix } from '../kv/prefix';
import { checkpointBlocks, type PrefixCache } from '../kv/prefix-cache';
import { SequenceBlocks, type CopyBlock } from '../kv/sequence-blocks';

/**
 * One request's tokens and the KV blocks they occupy. Blocks that are full and computed are known to
 * the prefix cache, which shares them with other sequences; nobody writes to a block that is shared.
 */
export class Sequence {
  /** Prompt, then generated tokens. */
  readonly tokens: number[] = [];
  /** Tokens whose keys are in the cache, or will be when the steps that were enqueued are done. */
  computed = 0;
  /** Of these, the tokens of steps that are done. */
  private landed = 0;
  private readonly blocks: Map<LayerGroup, SequenceBlocks>;
  /** What was published: so many blocks, up to a prefix of the cache, which is pinned. */
  published = 0;
  private tip: Prefix | undefined;
  /** Lengths in blocks at which others may go on: streaming groups keep their window there. */
  private points: number[];
  private epoch = 0;

  constructor(
    tokens: ArrayLike<number>,
    private readonly groups: readonly LayerGroup[],
    private readonly cache?: PrefixCache,
  ) {
    this.push(tokens, 0);
    this.blocks = new Map(groups.map((group) => [group, new SequenceBlocks(group)]));
    this.points = [this.reusableBlocks()];
    this.tip = cache?.pin(cache.root);
  }

  blocksOf(group: LayerGroup): SequenceBlocks {
    return this.blocks.get(group) as SequenceBlocks;
  }

  /** Whole blocks that both begin with, of those that `reuse` could take over. */
  sharedBlocks(other: Sequence, limit = Infinity): number {
    const most = Math.min(limit, this.tokens.length - 1, other.tokens.length);
    let common = 0;
    while (common < most && this.tokens[common] === other.tokens[common]) common++;
    return Math.floor(common / blockTokens);
  }

  /** Another sequence will go on from here: so many blocks, which were not published yet. */
  expectPart(blocks: number): void {
    if (!this.points.includes(blocks)) this.points.push(blocks);
  }

  /** The group whose pool cannot give the blocks that the next `count` tokens need. */
  missing(count: number): LayerGroup | undefined {
    const { computed } = this;
    return this.groups.find((group) => {
      return this.blocksOf(group).missing(computed, computed + count) > group.pool.available;
    });
  }

  /** Goes on with tokens that were not generated, from index `from` of these. */
  append(tokens: ArrayLike<number>, from = 0): void {
    this.push(tokens, from);
    this.points = [...this.points.filter((point) => point > this.published), this.reusableBlocks()];
  }

  /**
   * Goes on with other tokens: what they begin with in common stays computed, all but the last. False,
   * and nothing is changed, where `rewind` is.
   */
  turnTo(tokens: ArrayLike<number>): boolean {
    let common = 0;
    while (common < tokens.length - 1 && this.tokens[common] === tokens[common]) common++;
    if (!this.rewind(common)) return false;
    this.tokens.length = this.computed;
    this.append(tokens, this.computed);
    return true;
  }

  /** Makes room for the next `count` tokens; blocks that are shared are copied before they are written. */
  extend(count: number, copy: CopyBlock = cannotCopy): void {
    for (const blocks of this.blocks.values()) {
      blocks.own(this.computed, copy);
      blocks.extend(this.computed + count);
    }
  }

  /**
   * A step that computes the next `count` tokens was enqueued; gives back what no later query can
   * read. Returns what to call once the step is done: full blocks are published then, not before.
   */
  advance(count: number): () => void {
    const before = Math.floor(this.computed / blockTokens);
    this.computed += count;
    if (Math.floor(this.computed / blockTokens) > before) this.trim();
    const { computed, epoch } = this;
    return () => {
      if (epoch === this.epoch) this.land(computed);
    };
  }

  /**
   * Takes over what the cache holds of the first tokens, at most `limit` and all but the last, which
   * is computed in any case; `withHost`: also what has to be copied back from the host, if there are
   * blocks for all of it. Returns how many it took: they are computed.
   */
  reuse(limit = Infinity, withHost = true): number {
    const { cache, tokens, groups } = this;
    if (cache === undefined || this.computed > 0) return 0;
    const most = Math.min(this.reusableBlocks(), Math.floor(limit / blockTokens));
    let found = cache.match(tokens, most, withHost && cache.host !== undefined);
    if (!this.hasRoom(found.path)) found = cache.match(tokens, most);
    const { path, seen } = found;
    // Others had the same tokens up to there: it is likely that more will.
    if (seen > path.length && !this.points.includes(seen)) this.points.push(seen);
    groups.forEach((group, g) => this.blocksOf(group).adopt(path, g, cache));
    this.moveTo(path.at(-1) ?? cache.root);
    this.published = path.length;
    this.computed = this.landed = path.length * blockTokens;
    return this.computed;
  }

  private hasRoom(path: readonly Prefix[]): boolean {
    return this.groups.every((group, g) => {
      const { hosted, taken } = this.blocksOf(group).adoptable(path, g);
      return hosted === 0 || taken <= group.pool.available;
    });
  }

  /** Another sequence with the same tokens, as far as they are known to be computed, in the same blocks. */
  fork(): Sequence {
    const fork = new Sequence(this.tokens, this.groups, this.cache);
    fork.points = [...this.points];
    fork.computed = fork.landed = Math.min(this.landed, this.tokens.length);
    for (const [group, blocks] of this.blocks) fork.blocks.set(group, blocks.fork(fork.computed));
    if (this.tip !== undefined) fork.moveTo(this.tip);
    fork.published = this.published;
    return fork;
  }

  /**
   * Takes back tokens from `tokens` on, and those of steps that are not done. False, and nothing is
   * changed, where streaming groups have given back what the next token would read.
   */
  rewind(tokens: number): boolean {
    const to = Math.min(tokens, this.landed, this.tokens.length);
    const blocks = [...this.blocks.values()];
    if (!blocks.every((one) => one.reaches(to))) return false;
    for (const one of blocks) one.cut(to);
    this.epoch++;
    this.computed = this.landed = to;
    for (; this.published > Math.floor(to / blockTokens); this.published--) {
      if (this.tip?.parent !== undefined) this.moveTo(this.tip.parent);
    }
    return true;
  }

  /**
   * KV bytes held with so many tokens in the cache, and what they would be if every attention were
   * full.
   */
  kvBytes(tokens: number): { resident: number; full: number } {
    let resident = 0;
    let full = 0;
    for (const group of this.blocks.keys()) {
      const all = blocksFor(tokens);
      resident += (all - group.blocksFreed(tokens)) * group.blockBytes;
      full += all * group.blockBytes;
    }
    return { resident, full };
  }

  /** Gives back every block; what was published stays in the cache. It may be computed again. */
  release(): void {
    this.epoch++;
    this.keepWindow();
    for (const blocks of this.blocks.values()) blocks.release();
    if (this.cache !== undefined) this.moveTo(this.cache.root);
    this.computed = this.landed = this.published = 0;
  }

  /** Blocks of the tokens that can be taken from the cache: all but the last token's. */
  private reusableBlocks(): number {
    return Math.max(0, Math.floor((this.tokens.length - 1) / blockTokens));
  }

  /** Array.from takes 20 times as long for a typed array. */
  private push(tokens: ArrayLike<number>, from: number): void {
    for (let i = from; i < tokens.length; i++) this.tokens.push(tokens[i] as number);
  }

  private trim(): void {
    for (const [group, blocks] of this.blocks) {
      const wanted = (index: number) => index >= this.published && this.keeps(group, index);
      blocks.trim(this.computed, this.cache && wanted);
    }
  }

  private land(computed: number): void {
    this.landed = computed;
    if (this.cache === undefined) return;
    // A token that was chosen on the device may not have been told yet.
    const known = Math.floor(Math.min(computed, this.tokens.length) / blockTokens);
    for (; this.published < known; this.published++) this.publish(this.cache, this.published);
  }

  private publish(cache: PrefixCache, index: number): void {
    const prefix = cache.longer(this.tip ?? cache.root, this.tokens, index);
    this.groups.forEach((group, g) => {
      this.blocksOf(group).publish(index, prefix, cache, g);
      if (this.keeps(group, index)) prefix.kept = true;
    });
    this.moveTo(prefix);
  }

  /** Whether the window at a point of the sequence has this block. */
  private keeps({ kind, range }: LayerGroup, index: number): boolean {
    if (kind === 'full') return false; // it keeps everything in any case
    const next = (Math.floor(index / checkpointBlocks) + 1) * checkpointBlocks;
    return [next, ...this.points].some(
      (point) => index < point && index > point - range.localBlocks,
    );
  }

  /** Where a sequence ends, the next turn of its chat goes on. */
  private keepWindow(): void {
    const locals = Math.max(
      0,
      ...this.groups.map(({ kind, range }) => (kind === 'streaming' ? range.localBlocks : 0)),
    );
    let prefix = this.tip;
    for (let i = 1; i < locals && prefix !== undefined; i++, prefix = prefix.parent)
      prefix.kept = true;
  }

  private moveTo(prefix: Prefix): void {
    const before = this.tip;
    this.tip = this.cache?.pin(prefix);
    if (before !== undefined) this.cache?.unpin(before);
  }
}

function cannotCopy(): never {
  throw new LozaError('ERR_LOZA_INTERNAL', 'A shared KV block was to be written');
}
