import { attentionBlock } from '../checkpoint/streaming-config';
import type { Device } from '../native/device';
import { fullRange, type KeyRange, type Ops } from '../native/ops';
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
    private readonly device: Pick<Device, 'allocate' | 'release'>,
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

  /** Enqueues a copy of a block of every attention, bit for bit. */
  copyBlock(ops: Pick<Ops, 'cast'>, from: number, to: number): void {
    const words = this.blockBytes / this.attentions.length / bytesPerElement.f32;
    for (const cache of this.caches) {
      const [source, target] = [from, to].map((block) =>
        cache.view('f32', [words], [1], block * words),
      ) as [Tensor, Tensor];
      ops.cast(target, source);
      this.device.release(source);
      this.device.release(target);
    }
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

/** The key ranges of both kinds of group. */
export function groupRange(
  kind: LayerGroupKind,
  pattern: { sinkBlocks: number; localBlocks: number } | undefined,
): KeyRange {
  if (kind === 'full' || pattern === undefined) return fullRange;
  return { sinkBlocks: pattern.sinkBlocks, localBlocks: pattern.localBlocks };
}
