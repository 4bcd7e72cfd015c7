import type { Stream } from '../native/device';
import type { Tensor } from '../native/tensor';

/**
 * Brings the loads of routed experts together without a loss that would pull at the weights
 * (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). After each step the correction bias, which decides
 * who is chosen and nothing else, goes down by `rate` for experts with more than the mean load and up
 * for those with less. Zero experts keep theirs: how much is skipped is left to the router.
 */
export class RouterBalance {
  private readonly loads = new Map<Tensor, Float64Array>();
  private reads: Promise<void>[] = [];

  constructor(
    private readonly stream: Pick<Stream, 'readIntegers' | 'readFloats' | 'write'>,
    private readonly rate: number,
  ) {}

  /** Counts one round. `bias` is f32 [experts and zero experts], `starts` the expert plan's. */
  note(bias: Tensor, starts: Tensor): void {
    const read = this.stream.readIntegers(starts).then((values) => {
      const loads = this.loads.get(bias) ?? new Float64Array(values.length - 1);
      loads.forEach((load, e) => (loads[e] = load + (values[e + 1] ?? 0) - (values[e] ?? 0)));
      this.loads.set(bias, loads);
    });
    read.catch(() => {}); // told when it is waited for
    this.reads.push(read);
  }

  /**
   * Changes the biases by the loads since the last time. Returns how many times the mean load the
   * busiest expert had, in the mean over the layers; NaN where there were none.
   */
  async update(): Promise<number> {
    await Promise.all(this.reads.splice(0));
    let sum = 0;
    for (const [bias, loads] of this.loads) {
      const mean = loads.reduce((total, load) => total + load, 0) / loads.length;
      const values = await this.stream.readFloats(bias);
      loads.forEach(
        (load, e) => (values[e] = (values[e] ?? 0) + this.rate * Math.sign(mean - load)),
      );
      this.stream.write(bias, values);
      sum += Math.max(...loads) / mean;
    }
    const busiest = sum / this.loads.size;
    this.loads.clear();
    return busiest;
  }
}
