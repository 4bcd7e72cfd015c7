import type { Device } from '../native/device';
import type { Ops } from '../native/ops';
import { bytesPerElement, type Tensor } from '../native/tensor';
import type { LayerGroup } from './layer-group';
import type { Prefix } from './prefix';
import { RecencyList } from './recency-list';

/** A prefix whose last block goes to or comes from a block of the device. */
interface Copy {
  prefix: Prefix;
  block: number;
}

/** Blocks of host memory that are allocated at a time: to pin a gigabyte takes half a second. */
const slabBlocks = 16;

/**
 * Blocks that the prefix cache had to give up, in the host's memory: what was read stays, however
 * many sessions take turns. Copies run in stream order. A block is here or on the device; when the
 * host is full, what came here first goes.
 */
export class HostCache {
  private readonly groups: readonly HostGroup[];

  /** `capacities`: blocks of each group. `prune` forgets prefixes that nothing is left of. */
  constructor(
    memory: HostMemory,
    groups: readonly LayerGroup[],
    capacities: readonly number[],
    prune: (prefix: Prefix) => void,
  ) {
    this.groups = groups.map((group, g) => {
      const forget = (prefix: Prefix) => {
        prefix.hosted[g] = -1;
        prune(prefix);
      };
      return new HostGroup(memory, group, g, capacities[g] ?? 0, forget);
    });
  }

  /** Blocks of a group that are here. */
  blocks(group: number): number {
    return this.groups[group]?.length ?? 0;
  }

  /**
   * The pool takes a block back; its contents leave with the next `flush`, which has to come before
   * anything that writes to the block.
   */
  save(group: number, prefix: Prefix, block: number): void {
    this.groups[group]?.save({ prefix, block });
  }

  flush(): void {
    for (const group of this.groups) group.flush();
  }

  /** Until they are restored or let go, these prefixes are not given up. */
  hold(group: number, prefixes: readonly Prefix[]): void {
    this.flush(); // what is copied can be given up from then on
    this.groups[group]?.hold(prefixes);
  }

  letGo(group: number, prefixes: readonly Prefix[]): void {
    this.groups[group]?.letGo(prefixes);
  }

  /** Copies the contents of held prefixes to blocks of the device; they are not here any more. */
  restore(group: number, copies: readonly Copy[]): void {
    this.flush();
    this.groups[group]?.restore(copies);
  }

  /** Forgets everything: of a stream that has failed, copies may not have been made. */
  clear(): void {
    for (const group of this.groups) group.clear();
  }
}

export interface HostMemory {
  ops: Pick<Ops, 'cast'>;
  device: Pick<Device, 'allocate' | 'release'>;
}

/** Contents of the blocks of one group. */
class HostGroup {
  private readonly slabs: Tensor[][] = []; // by attention
  private readonly free: number[] = [];
  private readonly prefixes: (Prefix | undefined)[] = []; // by slot
  private readonly unneeded: RecencyList;
  private pending: Copy[] = []; // their slots are taken

  constructor(
    private readonly memory: HostMemory,
    private readonly group: LayerGroup,
    /** Its index. */
    private readonly index: number,
    private readonly capacity: number,
    private readonly forget: (prefix: Prefix) => void,
  ) {
    this.unneeded = new RecencyList(capacity);
  }

  get length(): number {
    return this.prefixes.filter((prefix) => prefix !== undefined).length;
  }

  save(copy: Copy): void {
    if (this.slotOf(copy.prefix) < 0 && this.take(copy.prefix)) this.pending.push(copy);
  }

  flush(): void {
    if (this.pending.length === 0) return;
    const copies = this.pending.sort((a, b) => a.block - b.block);
    this.pending = [];
    // Neighbours of the device become neighbours here, and are copied together.
    const slots = copies.map(({ prefix }) => this.slotOf(prefix)).sort((a, b) => a - b);
    copies.forEach(({ prefix }, i) => this.occupy(slots[i] as number, prefix));
    for (const run of this.runs(copies)) this.copy(run, true);
    for (const slot of slots) this.unneeded.add(slot);
  }

  hold(prefixes: readonly Prefix[]): void {
    for (const prefix of prefixes) this.unneeded.delete(this.slotOf(prefix));
  }

  letGo(prefixes: readonly Prefix[]): void {
    for (const slot of prefixes.map((prefix) => this.slotOf(prefix))) {
      if (slot >= 0) this.unneeded.add(slot);
    }
  }

  restore(copies: readonly Copy[]): void {
    for (const run of this.runs(copies)) this.copy(run, false);
    // The last first, so that neighbours are taken in order again.
    for (const { prefix } of [...copies].reverse()) this.vacate(this.slotOf(prefix));
  }

  clear(): void {
    this.pending = [];
    for (const slot of this.prefixes.keys()) if (this.prefixes[slot]) this.vacate(slot);
  }

  private slotOf(prefix: Prefix): number {
    return prefix.hosted[this.index] ?? -1;
  }

  /** Finds a slot for a prefix; false when all are needed. */
  private take(prefix: Prefix): boolean {
    if (this.free.length === 0) this.grow();
    const slot = this.free.pop() ?? this.unneeded.oldest;
    if (slot === undefined) return false;
    const before = this.prefixes[slot];
    this.unneeded.delete(slot);
    // In this order: who goes may be all that its parent, the new one, was there for.
    this.occupy(slot, prefix);
    if (before !== undefined) this.forget(before);
    return true;
  }

  private occupy(slot: number, prefix: Prefix): void {
    this.prefixes[slot] = prefix;
    prefix.hosted[this.index] = slot;
  }

  private vacate(slot: number): void {
    const prefix = this.prefixes[slot] as Prefix;
    this.unneeded.delete(slot);
    this.prefixes[slot] = undefined;
    this.free.push(slot);
    this.forget(prefix);
  }

  private grow(): void {
    const first = this.slabs.length * slabBlocks;
    const count = Math.min(slabBlocks, this.capacity - first);
    if (count <= 0) return;
    const { device } = this.memory;
    const shape = [count * this.words];
    this.slabs.push(this.group.attentions.map(() => device.allocate('f32', shape, 'host')));
    for (let i = count - 1; i >= 0; i--) this.free.push(first + i);
  }

  /** Neighbours on both sides, within a slab. */
  private runs(copies: readonly Copy[]): Copy[][] {
    const runs: Copy[][] = [];
    for (const copy of copies) {
      const run = runs.at(-1);
      const before = run?.at(-1);
      const slot = this.slotOf(copy.prefix);
      const goesOn =
        before !== undefined &&
        copy.block === before.block + 1 &&
        slot === this.slotOf(before.prefix) + 1 &&
        slot % slabBlocks !== 0;
      if (goesOn) run?.push(copy);
      else runs.push([copy]);
    }
    return runs;
  }

  /** Words of four bytes that one attention has in a block. */
  private get words(): number {
    const { blockBytes, attentions } = this.group;
    return blockBytes / attentions.length / bytesPerElement.f32;
  }

  private copy(run: readonly Copy[], toHost: boolean): void {
    const { words, memory, group } = this;
    const { block, prefix } = run[0] as Copy;
    const slot = this.slotOf(prefix);
    const shape = [run.length * words];
    this.slabs[Math.floor(slot / slabBlocks)]?.forEach((slab, n) => {
      const host = slab.view('f32', shape, [1], (slot % slabBlocks) * words);
      const device = group.cache(n).view('f32', shape, [1], block * words);
      if (toHost) memory.ops.cast(host, device);
      else memory.ops.cast(device, host);
      memory.device.release(host);
      memory.device.release(device);
    });
  }
}
