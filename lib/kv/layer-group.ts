import { attentionBlock } from '../checkpoint/streaming-config';
import type { Device } from '../native/device';
import { fullRange, type KeyRange } from '../native/ops';
import { bytesPerElement, type DType, type Tensor } from '../native/tensor';
import { BlockPool } from './block-pool';

/** Tokens of a KV block, which is also LoZA's sparse block. */
export const blockTokens = attentionBlock;

export const blocksFor = (tokens: number): number => Math.ceil(tokens / blockTokens);

export type LayerGroupKind = 'full' | 'streaming';

/**
 * The attentions that keep the same keys, and therefore share one pool, one block table and one slot
 * mapping: LoZA's layer-level sparsity gives every streaming attention the same schedule.
 */
export class LayerGroup {
  readonly pool: BlockPool;
  private readonly caches: Tensor[];

  constructor(
    device: Pick<Device, 'allocate'>,
    readonly kind: LayerGroupKind,
    readonly range: KeyRange,
    /** Indices of its attentions in the model. */
    readonly attentions: readonly number[],
    capacity: number,
    private readonly rowWidth: number,
    private readonly dtype: DType,
  ) {
    this.pool = new BlockPool(capacity);
    this.caches = attentions.map(() =>
      device.allocate(dtype, [capacity * blockTokens, rowWidth], 'kv'),
    );
  }

  /** [slots, latent + rope]: the cache of the group's n-th attention. */
  cache(n: number): Tensor {
    return this.caches[n] as Tensor;
  }

  /** Bytes of one block over all attentions of the group. */
  get blockBytes(): number {
    const rowBytes = this.rowWidth * bytesPerElement[this.dtype];
    return blockTokens * rowBytes * this.attentions.length;
  }

  /** First block of the local part for a query at `position`; blocks from the sinks up to it are dead. */
  firstLocalBlock(position: number): number {
    const { sinkBlocks, localBlocks } = this.range;
    const block = Math.floor(position / blockTokens);
    return Math.max(sinkBlocks, block - localBlocks + 1);
  }

  /** Blocks that a sequence with `tokens` in the cache has given back. */
  blocksFreed(tokens: number): number {
    if (this.kind === 'full') return 0;
    const first = Math.min(this.firstLocalBlock(tokens), blocksFor(tokens));
    return Math.max(0, first - this.range.sinkBlocks);
  }

  /** Blocks that a sequence of `tokens`, read in chunks of `chunk`, holds at its largest. */
  blocksNeeded(tokens: number, chunk: number): number {
    const all = blocksFor(tokens);
    if (this.kind === 'full') return all;
    const { sinkBlocks, localBlocks } = this.range;
    return Math.min(all, sinkBlocks + localBlocks + blocksFor(chunk) + 1);
  }
}

/** The blocks that one sequence holds in one group, by absolute block index; -1 where it holds none. */
export class SequenceBlocks {
  private readonly table: number[] = [];
  private trimmed = 0; // blocks below this were freed, sinks excepted

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

  /** Makes room for positions below `tokens`. */
  extend(tokens: number): void {
    while (this.table.length < blocksFor(tokens)) this.table.push(this.group.pool.allocate());
  }

  /** Frees the blocks that no query at `nextPosition` or later can read. */
  trim(nextPosition: number): void {
    if (this.group.kind === 'full') return;
    const { sinkBlocks } = this.group.range;
    const end = Math.min(this.group.firstLocalBlock(nextPosition), this.table.length);
    for (let index = Math.max(this.trimmed, sinkBlocks); index < end; index++) {
      this.group.pool.release(this.block(index));
      this.table[index] = -1;
    }
    this.trimmed = Math.max(this.trimmed, end);
  }

  release(): void {
    for (const block of this.table) if (block >= 0) this.group.pool.release(block);
    this.table.length = 0;
    this.trimmed = 0;
  }
}

/** The key ranges of both kinds of group. */
export function groupRange(
  kind: LayerGroupKind,
  pattern: { sinkBlocks: number; localBlocks: number } | undefined,
): KeyRange {
  if (kind === 'full' || pattern === undefined) return fullRange;
  return { sinkBlocks: pattern.sinkBlocks, localBlocks: pattern.localBlocks };
}
