import { LozaError } from '../errors';
import { fromNative, type DeviceKind } from '../native/binding';
import { activationTypes, Device, type Arena, type Stream } from '../native/device';
import { Ops } from '../native/ops';
import { bytesPerElement, rowMajor, type DType, type Tensor } from '../native/tensor';
import type { DeviceTensors, HostTensors } from './cases/operation';
import { decode, elementsOf, encode, type HostTensor } from './host-tensor';

const guardBytes = 256;
const nanBits = 0x7fc00000; // as an integer, an absurd id

/**
 * A device whose memory is hostile: whatever is allocated in it starts as NaN (integers: absurd) and
 * lies between guards of NaN. Reading what was not written, or past an end, spoils the result;
 * writing past an end fails the run.
 */
export class Lab {
  private opened: { device: Device; arena: Arena; stream: Stream; ops: Ops } | undefined;
  private guards: Tensor[] = [];

  constructor(
    readonly kind: DeviceKind,
    /** The type of activations on the device. */
    readonly activation: 'f32' | 'bf16' = activationTypes[kind][0] ?? 'f32',
  ) {}

  get ops(): Ops {
    return this.open().ops;
  }

  get stream(): Stream {
    return this.open().stream;
  }

  close(): void {
    this.opened?.device.close();
  }

  /** Runs `body` in a scope of the arena, checks the guards and returns what its results hold. */
  async run(
    body: (ops: Ops) => Record<string, Tensor>,
  ): Promise<Record<string, Float32Array | Int32Array>> {
    const { arena, ops } = this.open();
    this.guards = [];
    const pending = arena.scope(() => {
      const results = Object.entries(body(ops)).map(async ([name, tensor]) => {
        return [name, await this.read(tensor)] as const;
      });
      const guards = this.guards.map((guard) => this.read(guard));
      return Promise.all([Promise.all(results), Promise.all(guards)]);
    });
    const [results, guards] = await pending;
    for (const guard of guards)
      if (guard.some((value) => !Number.isNaN(value) && value !== nanBits))
        throw new LozaError('ERR_LOZA_INTERNAL', 'memory next to a tensor was overwritten');
    return Object.fromEntries(results);
  }

  /** Like `run`, for bodies that return one tensor. */
  async runOne(body: (ops: Ops) => Tensor): Promise<Float32Array | Int32Array> {
    return (await this.run((ops) => ({ result: body(ops) })))['result']!;
  }

  /** Copies a tensor to the device; padding between its rows is NaN. */
  upload(tensor: HostTensor): Tensor {
    const { dtype, shape, values, padding } = tensor;
    const width = shape.at(-1) ?? 1;
    if (padding === 0) return this.uploadAs(dtype, shape, values);
    const padded = new Float64Array((values.length / width) * (width + padding)).fill(NaN);
    for (let row = 0; row * width < values.length; row++)
      padded.set(values.subarray(row * width, (row + 1) * width), row * (width + padding));
    const whole = this.uploadAs(dtype, shape.with(-1, width + padding), padded);
    return whole.slice(-1, 0, width);
  }

  uploadAll<In extends HostTensors>(tensors: In): DeviceTensors<In> {
    const entries = Object.entries(tensors).map(([name, tensor]) => [
      name,
      tensor && this.upload(tensor),
    ]);
    return Object.fromEntries(entries) as DeviceTensors<In>;
  }

  private uploadAs(dtype: DType, shape: readonly number[], values: ArrayLike<number>): Tensor {
    const tensor = this.open().arena.allocate(dtype, shape);
    if (values.length > 0) this.stream.write(tensor, encode(dtype, values));
    return tensor;
  }

  private async read(tensor: Tensor): Promise<Float32Array | Int32Array> {
    try {
      return decode(tensor.dtype, await this.stream.native.read(tensor.handle));
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** Throws ERR_LOZA_DEVICE_UNAVAILABLE with the reason; the first use does the same. */
  open(): { device: Device; arena: Arena; stream: Stream; ops: Ops } {
    if (this.opened !== undefined) return this.opened;
    const device = new Device(this.kind, this.activation);
    const stream = device.makeStream();
    const arena = device.makeArena();
    const allocate = arena.allocate.bind(arena);
    arena.allocate = (dtype, shape) => this.allocateGuarded(allocate, dtype, shape);
    this.opened = { device, stream, arena, ops: new Ops(stream, arena) };
    return this.opened;
  }

  private allocateGuarded(
    allocate: Arena['allocate'],
    dtype: DType,
    shape: readonly number[],
  ): Tensor {
    if (dtype === 'f8e4m3') return allocate(dtype, shape); // read-only everywhere
    const guard = guardBytes / bytesPerElement[dtype];
    const elements = elementsOf(shape);
    const whole = allocate(dtype, [elements + 2 * guard]);
    this.stream.native.Fill(whole.handle, dtype === 'i32' ? nanBits : NaN);
    this.guards.push(whole.slice(0, 0, guard), whole.slice(0, guard + elements, whole.elements));
    return whole.view(dtype, shape, rowMajor(shape), guard);
  }
}
