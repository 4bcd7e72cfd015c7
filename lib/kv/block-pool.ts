import { LozaError } from '../errors';

/** Ids of the KV blocks of one layer group: which are free, and how many are held. */
export class BlockPool {
  private readonly free: number[];
  private readonly held: Uint8Array;

  constructor(readonly capacity: number) {
    this.free = Array.from({ length: capacity }, (_, i) => capacity - 1 - i);
    this.held = new Uint8Array(capacity);
  }

  get inUse(): number {
    return this.capacity - this.free.length;
  }

  /** Throws ERR_LOZA_OUT_OF_MEMORY when every block is held; the engine admits by budget, so it never should. */
  allocate(): number {
    const block = this.free.pop();
    if (block === undefined) {
      const problem = `All ${this.capacity} KV blocks are held`;
      throw new LozaError('ERR_LOZA_OUT_OF_MEMORY', problem, { hint: 'Load with more maxTokens' });
    }
    this.held[block] = 1;
    return block;
  }

  release(block: number): void {
    if (this.held[block] !== 1) {
      throw new LozaError('ERR_LOZA_INTERNAL', `KV block ${block} was released twice`);
    }
    this.held[block] = 0;
    this.free.push(block);
  }
}
