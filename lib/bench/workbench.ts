import { LozaError } from '../errors';
import { Device } from '../native/device';
import type { DeviceKind } from '../native/binding';
import { Ops, type Weight } from '../native/ops';
import { bytesPerElement, type DType, type Tensor } from '../native/tensor';
import { Random } from '../selftest/random';

/** Bytes that a cold working set and its copies take: several times the L2 cache of a GPU. */
const coldBytes = 200 * 2 ** 20;
const mostCopies = 128;
/** Larger results are looked at in this many places, as many bytes in all. */
const checkedBytes = 8 * 2 ** 20;
const checkedPlaces = 16;
const absurd = 0x7fc00000; // NaN, and an integer that no result holds

/** A device on which cases are laid out: random tensors, poisoned results. */
export class Workbench {
  readonly device: Device;
  readonly ops: Ops;
  readonly random = new Random('bench');
  /** Uploads that last as long as the workbench. */
  readonly lasting: Ops;
  private seed = 0;
  private kept: Tensor[] = [];

  constructor(readonly kind: DeviceKind) {
    this.device = new Device(kind);
    const stream = this.device.makeStream();
    this.ops = new Ops(stream, this.device.makeArena());
    this.lasting = new Ops(stream, this.device.makeArena());
  }

  get activation(): DType {
    return this.device.activation;
  }

  get activationBytes(): number {
    return bytesPerElement[this.activation];
  }

  tensor(dtype: DType, ...shape: number[]): Tensor {
    const tensor = this.device.allocate(dtype, shape, 'workspace');
    this.kept.push(tensor);
    return tensor;
  }

  /** Random values of this standard deviation, made on the device. */
  normal(dtype: DType, shape: readonly number[], deviation = 1): Tensor {
    const tensor = this.tensor(dtype, ...shape);
    this.ops.fillRandom(tensor, [++this.seed, 0], deviation);
    return tensor;
  }

  activations(...shape: number[]): Tensor {
    return this.normal(this.activation, shape);
  }

  /** A matrix, or a stack of them, that keeps the size of what it multiplies. */
  weight(dtype: DType, ...shape: number[]): Weight {
    const k = shape.at(-1) ?? 1;
    if (dtype !== 'f8e4m3') return { tensor: this.normal(dtype, shape, 1 / Math.sqrt(k)) };
    const blocks = shape.map((n, i) => (i < shape.length - 2 ? n : Math.ceil(n / 128)));
    const scale = this.tensor('f32', ...blocks);
    this.ops.fill(scale, 1 / (64 * Math.sqrt(k)));
    return { tensor: this.normal(dtype, shape, 64), scale };
  }

  integers(values: Int32Array, ...shape: number[]): Tensor {
    const tensor = this.tensor('i32', ...(shape.length > 0 ? shape : [values.length]));
    if (values.length > 0) this.ops.stream.write(tensor, values);
    return tensor;
  }

  /** As many of a thing of `bytes` as lie beyond the caches together. */
  copies<T>(bytes: number, make: () => T): T[] {
    const beyond = this.kind === 'cuda' ? Math.ceil(coldBytes / Math.max(bytes, 1)) : 1;
    return Array.from({ length: Math.min(Math.max(beyond, 1), mostCopies) }, make);
  }

  /** Gives back the tensors of a case. */
  clear(): void {
    for (const tensor of this.kept) this.device.release(tensor);
    this.kept = [];
  }

  close(): void {
    this.device.close();
  }

  /**
   * Runs `body` on results that start as NaN, and throws unless what it returns is finite: all of
   * a small tensor, parts of a large one.
   */
  async check(body: () => readonly Tensor[]): Promise<void> {
    const { arena, stream } = this.ops;
    const allocate = arena.allocate.bind(arena);
    arena.allocate = (dtype, shape) => {
      const tensor = allocate(dtype, shape);
      if (dtype !== 'f8e4m3') this.poison(tensor);
      return tensor;
    };
    try {
      const pending = arena.scope(() => {
        const parts = body().flatMap(partsOf);
        return parts.map(async (part) => ({ part, words: await stream.readIntegers(part) }));
      });
      for (const { part, words } of await Promise.all(pending)) checkFinite(part.dtype, words);
    } finally {
      arena.allocate = allocate;
    }
  }

  poison(tensor: Tensor): void {
    this.ops.fill(tensor, tensor.dtype === 'i32' ? absurd : NaN);
  }
}

function partsOf(tensor: Tensor): Tensor[] {
  const flat = tensor.reshape(tensor.elements);
  if (tensor.bytes <= checkedBytes) return [flat];
  const size = checkedBytes / checkedPlaces / bytesPerElement[tensor.dtype];
  const last = tensor.elements - size;
  return Array.from({ length: checkedPlaces }, (_, i) => {
    const from = Math.floor((last * i) / (checkedPlaces - 1) / 8) * 8;
    return flat.slice(0, from, from + size);
  });
}

/** Every element, in words of 32 bits: bf16 come in pairs. */
function checkFinite(dtype: DType, words: Int32Array): void {
  const exponent = 0x7f800000;
  const upper = 0xffff0000;
  const bad = words.findIndex((word) => {
    if (dtype === 'i32') return word === absurd;
    if ((word & exponent) === exponent) return true;
    return dtype === 'bf16' && ((word << 16) & upper & exponent) === exponent;
  });
  if (bad < 0) return;
  const problem = `the result is not finite or was not written (word ${bad} of a part)`;
  throw new LozaError('ERR_LOZA_INTERNAL', problem);
}
