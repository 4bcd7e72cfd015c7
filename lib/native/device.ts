import { fromNative, native, addon } from './binding';
import type {
  DeviceKind,
  NativeArena,
  NativeDevice,
  NativeDeviceInfo,
  NativeGraph,
  NativeMemory,
  NativeStream,
  TypedArray,
} from './binding';
import { dtypes, Tensor, type DType } from './tensor';

/** What memory is for; the order is that of `Purpose` in native/core/memory.h. */
const purposes = ['weights', 'mappedWeights', 'kv', 'workspace', 'host'] as const;
export type Purpose = (typeof purposes)[number];

/** Every device this build knows of, usable or not. */
export function listDevices(): NativeDeviceInfo[] {
  return native(() => addon().probeDevices());
}

/** The types that activations can have on a kind of device; the first is the usual one. */
export const activationTypes: Readonly<Record<DeviceKind, readonly ('f32' | 'bf16')[]>> = {
  cpu: ['f32'],
  cuda: ['bf16', 'f32'],
};

/** A device opened for one model: all memory a model takes belongs to it and goes with `close`. */
export class Device {
  private readonly native: NativeDevice;
  /** The type that activations have here; "act" in the contracts of native/ops. */
  readonly activation: DType;

  /** Throws ERR_LOZA_DEVICE_UNAVAILABLE with the reason. */
  constructor(
    readonly kind: DeviceKind,
    activation?: 'f32' | 'bf16',
  ) {
    this.native = native(() => new (addon().Device)(kind));
    this.activation = activation ?? activationTypes[kind][0] ?? 'f32';
  }

  /** Whether operations can read weights in the mapped file, without a copy. */
  get readsMappedFiles(): boolean {
    return this.kind === 'cpu';
  }

  /** A tensor that lives until released. Throws ERR_LOZA_OUT_OF_MEMORY. */
  allocate(dtype: DType, shape: readonly number[], purpose: Purpose): Tensor {
    const handle = native(() =>
      this.native.allocate(dtypes.indexOf(dtype), purposes.indexOf(purpose), shape),
    );
    return Tensor.contiguous(handle, dtype, shape, this.native);
  }

  /** Maps a file read-only, as bytes that tensors are views of. */
  mapFile(file: string, bytes: number): Tensor {
    const handle = native(() => this.native.mapFile(file, bytes));
    return Tensor.contiguous(handle, 'f8e4m3', [bytes], this.native);
  }

  /** Frees a tensor once the work enqueued so far is done. */
  release(tensor: Tensor): void {
    native(() => this.native.release(tensor.handle));
  }

  makeArena(): Arena {
    return new Arena(native(() => this.native.arena()));
  }

  makeStream(): Stream {
    return new Stream(
      native(() => this.native.stream(dtypes.indexOf(this.activation))),
      this.activation,
    );
  }

  /** Bytes held now, by purpose, and the largest sum so far. */
  memory(): NativeMemory {
    return native(() => this.native.memory());
  }

  /** Bytes that nobody on this machine uses. */
  freeMemory(): number {
    return native(() => this.native.freeMemory());
  }

  /** For tests: the allocation after `count` more successful ones fails. */
  failAllocationAfter(count: number): void {
    native(() => this.native.failAllocationAfter(count));
  }

  /** Drops queued work and frees everything. Idempotent. */
  close(): void {
    native(() => this.native.close());
  }
}

/** Where a step's activations live. */
export class Arena {
  constructor(private readonly native: NativeArena) {}

  allocate(dtype: DType, shape: readonly number[]): Tensor {
    const handle = native(() => this.native.allocate(dtypes.indexOf(dtype), shape));
    return Tensor.contiguous(handle, dtype, shape, this.native);
  }

  /** Runs `body` and then takes back what it allocated; work it enqueued may still use it. */
  scope<T>(body: () => T): T {
    const mark = native(() => this.native.mark());
    try {
      return body();
    } finally {
      native(() => this.native.release(mark));
    }
  }
}

/** An ordered queue of work; see native/core/stream.h. */
export class Stream {
  constructor(
    readonly native: NativeStream,
    /** The type that activations have on its device. */
    readonly activation: DType,
  ) {}

  /** Copies host data into a contiguous tensor, in stream order; the array may be reused at once. */
  write(to: Tensor, from: TypedArray): void {
    native(() => this.native.write(to.handle, from));
  }

  /** Copies the bytes of a view of a mapped file, in stream order. */
  upload(to: Tensor, from: Tensor): void {
    native(() => this.native.upload(to.handle, from.handle));
  }

  async readFloats(from: Tensor): Promise<Float32Array> {
    return new Float32Array(await this.read(from));
  }

  async readIntegers(from: Tensor): Promise<Int32Array> {
    return new Int32Array(await this.read(from));
  }

  private async read(from: Tensor): Promise<ArrayBuffer> {
    try {
      return await this.native.read(from.handle);
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** Resolves when everything enqueued so far is done; rejects with the first failure. */
  async synchronize(): Promise<void> {
    try {
      await this.native.synchronize();
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** Records what `body` enqueues instead of running it. */
  record(body: () => void): Graph {
    native(() => this.native.beginGraph());
    let graph: NativeGraph;
    try {
      body();
    } finally {
      graph = native(() => this.native.endGraph());
    }
    return new Graph(graph);
  }

  /** Replays a graph: one call, whatever it holds. */
  launch(graph: Graph): void {
    native(() => this.native.launch(graph.native));
  }
}

/** Recorded work. The tensors it uses must stay allocated while it may be launched. */
export class Graph {
  constructor(readonly native: NativeGraph) {}
}
