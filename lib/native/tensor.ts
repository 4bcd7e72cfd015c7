import { LozaError } from '../errors';
import { native, type NativeArena, type NativeDevice, type TensorHandle } from './binding';

/** Element types; the order is that of `DType` in native/core/tensor.h. */
export const dtypes = ['f32', 'bf16', 'f8e4m3', 'i32'] as const;
export type DType = (typeof dtypes)[number];
export const bytesPerElement: Record<DType, number> = { f32: 4, bf16: 2, f8e4m3: 1, i32: 4 };

type TensorOwner = Pick<NativeDevice | NativeArena, 'view'>;

/**
 * A view of device memory. Arena tensors are valid until their step ends, others until released.
 * Strides are in elements.
 */
export class Tensor {
  constructor(
    readonly handle: TensorHandle,
    readonly dtype: DType,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
    private readonly owner: TensorOwner,
  ) {}

  static contiguous(
    handle: TensorHandle,
    dtype: DType,
    shape: readonly number[],
    owner: TensorOwner,
  ): Tensor {
    return new Tensor(handle, dtype, shape, rowMajor(shape), owner);
  }

  /** Extent of a dimension; negative ones count from the end. */
  dim(index: number): number {
    const extent = this.shape.at(index);
    if (extent === undefined) throw outside(this, `dimension ${index}`);
    return extent;
  }

  get elements(): number {
    return this.shape.reduce((product, extent) => product * extent, 1);
  }

  get bytes(): number {
    return this.elements * bytesPerElement[this.dtype];
  }

  get isContiguous(): boolean {
    const wanted = rowMajor(this.shape);
    return (
      this.elements === 0 ||
      this.shape.every((extent, i) => extent === 1 || this.strides[i] === wanted[i])
    );
  }

  /** The part with `from <= index < to` along `dimension`; shares memory. */
  slice(dimension: number, from: number, to: number): Tensor {
    const at = dimension < 0 ? dimension + this.shape.length : dimension;
    if (from < 0 || to < from || to > this.dim(at)) throw outside(this, `rows ${from} to ${to}`);
    const shape = this.shape.with(at, to - from);
    return this.view(this.dtype, shape, this.strides, from * (this.strides[at] ?? 0));
  }

  /** The same elements in another shape; the tensor must be contiguous. */
  reshape(...shape: number[]): Tensor {
    const elements = shape.reduce((product, extent) => product * extent, 1);
    if (!this.isContiguous || elements !== this.elements) {
      throw outside(this, `the shape [${shape.join(', ')}]`);
    }
    return this.view(this.dtype, shape, rowMajor(shape), 0);
  }

  /** Any view of the same memory; `offset` in elements of `dtype`. Checked natively. */
  view(dtype: DType, shape: readonly number[], strides: readonly number[], offset: number): Tensor {
    const handle = native(() =>
      this.owner.view(
        this.handle,
        dtypes.indexOf(dtype),
        offset * bytesPerElement[dtype],
        shape,
        strides,
      ),
    );
    return new Tensor(handle, dtype, shape, strides, this.owner);
  }
}

export function rowMajor(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i] ?? 0;
  }
  return strides;
}

function outside(tensor: Tensor, what: string): LozaError {
  return new LozaError('ERR_LOZA_INTERNAL', `${what} of a tensor [${tensor.shape.join(', ')}]`);
}
