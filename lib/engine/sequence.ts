import { blocksFor, SequenceBlocks, type LayerGroup } from '../kv/layer-group';

/** One request's tokens and the KV blocks they occupy. */
export class Sequence {
  /** Prompt, then generated tokens. */
  readonly tokens: number[];
  /** Tokens whose keys are in the cache. */
  computed = 0;
  private readonly blocks: ReadonlyMap<LayerGroup, SequenceBlocks>;

  constructor(tokens: Iterable<number>, groups: readonly LayerGroup[]) {
    this.tokens = Array.from(tokens);
    this.blocks = new Map(groups.map((group) => [group, new SequenceBlocks(group)]));
  }

  blocksOf(group: LayerGroup): SequenceBlocks {
    return this.blocks.get(group) as SequenceBlocks;
  }

  /** Makes room for the next `count` tokens. */
  extend(count: number): void {
    for (const blocks of this.blocks.values()) blocks.extend(this.computed + count);
  }

  /** The next `count` tokens are in the cache now; frees what no later query can read. */
  advance(count: number): void {
    this.computed += count;
    for (const blocks of this.blocks.values()) blocks.trim(this.computed);
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

  release(): void {
    for (const blocks of this.blocks.values()) blocks.release();
    this.computed = 0;
  }
}
