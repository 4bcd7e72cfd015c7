/** A set of ids below `capacity` that knows which was added longest ago; every call takes O(1). */
export class RecencyList {
  length = 0;
  // A ring through the ids; `end` is the anchor: next is the oldest, previous the newest.
  private readonly next: Int32Array;
  private readonly previous: Int32Array;
  private readonly end: number;

  constructor(capacity: number) {
    this.end = capacity;
    this.next = new Int32Array(capacity + 1).fill(-1); // -1: not in the list
    this.previous = new Int32Array(capacity + 1).fill(-1);
    this.link(capacity, capacity);
  }

  get oldest(): number | undefined {
    return this.length === 0 ? undefined : this.next[this.end];
  }

  has(id: number): boolean {
    return id !== this.end && this.next[id]! >= 0;
  }

  /** Adds an id that is not there. */
  add(id: number): void {
    this.link(this.previous[this.end]!, id);
    this.link(id, this.end);
    this.length++;
  }

  /** Whether it was there. */
  delete(id: number): boolean {
    if (!this.has(id)) return false;
    this.link(this.previous[id]!, this.next[id]!);
    this.next[id] = this.previous[id] = -1;
    this.length--;
    return true;
  }

  private link(from: number, to: number): void {
    this.next[from] = to;
    this.previous[to] = from;
  }
}
