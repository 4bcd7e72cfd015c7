import { LozaError } from '../errors';
import { RecencyList } from './recency-list';

/** Contents of a block that the prefix cache can find again. */
export interface CachedContents {
  /** Worth keeping once nobody holds the block, though whoever computed it can read it no more. */
  readonly kept: boolean;
  /** The block to give up first in its place: one that is of no use without it, or itself. */
  victim(): number;
  /** They are gone. */
  forgotten(): void;
}

/**
 * The KV blocks of one layer group, by id. A block is *free*, *held* by one or several sequences, or
 * *idle*: nobody holds it, but its contents are cached, and stay until the room is needed.
 */
export class BlockPool {
  private readonly free: number[];
  private readonly holders: Int32Array;
  private readonly contents = new Map<number, CachedContents>();
  private readonly idle: RecencyList;

  constructor(readonly capacity: number) {
    this.free = Array.from({ length: capacity }, (_, i) => capacity - 1 - i);
    this.holders = new Int32Array(capacity);
    this.idle = new RecencyList(capacity);
  }

  /** Blocks that `allocate` can give: free ones and idle ones. */
  get available(): number {
    return this.free.length + this.idle.length;
  }

  get inUse(): number {
    return this.capacity - this.available;
  }

  /** Blocks whose contents are cached and that nobody holds. */
  get cached(): number {
    return this.idle.length;
  }

  /**
   * A block with one holder, of undefined contents. When none is free the cached contents go whose
   * last holder left longest ago. Throws ERR_LOZA_OUT_OF_MEMORY when every block is held; the
   * engine admits by budget, so it never should.
   */
  allocate(): number {
    const block = this.free.pop() ?? this.evict();
    if (block === undefined) {
      const problem = `All ${this.capacity} KV blocks are held`;
      throw new LozaError('ERR_LOZA_OUT_OF_MEMORY', problem, { hint: 'Load with more maxTokens' });
    }
    this.holders[block] = 1;
    return block;
  }

  /** One more holder of a block that is held or idle. */
  retain(block: number): void {
    if (this.isHeld(block)) this.holders[block]! += 1;
    else if (this.idle.delete(block)) this.holders[block] = 1;
    else throw new LozaError('ERR_LOZA_INTERNAL', `KV block ${block} is not there to be held`);
  }

  /** One holder less; without any the block is idle if its contents are cached, else free. */
  release(block: number): void {
    if (!this.isHeld(block)) {
      throw new LozaError('ERR_LOZA_INTERNAL', `KV block ${block} was released twice`);
    }
    this.holders[block]! -= 1;
    if (this.isHeld(block)) return;
    if (this.contents.has(block)) this.idle.add(block);
    else this.free.push(block);
  }

  /** Releases a block that its holder cannot read any more: contents that are not kept go as well. */
  drop(block: number): void {
    this.release(block);
    if (!this.isHeld(block) && this.contents.get(block)?.kept === false) this.forget(block);
  }

  isHeld(block: number): boolean {
    return this.holders[block]! > 0;
  }

  /** Whether its one holder may write to it: nobody else can read what is there. */
  isPrivate(block: number): boolean {
    return this.holders[block] === 1 && !this.contents.has(block);
  }

  /** The contents of a held block are cached from now on. */
  cache(block: number, contents: CachedContents): void {
    this.contents.set(block, contents);
  }

  /** The contents are cached no more; an idle block becomes free. */
  forget(block: number): void {
    const contents = this.contents.get(block);
    if (contents === undefined) return;
    this.contents.delete(block);
    if (this.idle.delete(block)) this.free.push(block);
    contents.forgotten();
  }

  private evict(): number | undefined {
    const { oldest } = this.idle;
    if (oldest === undefined) return undefined;
    this.forget(this.contents.get(oldest)?.victim() ?? oldest);
    return this.free.pop();
  }
}
