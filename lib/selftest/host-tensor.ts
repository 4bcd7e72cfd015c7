import { LozaError } from '../errors';
import type { TypedArray } from '../native/binding';
import type { DType } from '../native/tensor';

/**
 * A tensor before it is on a device. `values` is what the device will see, after rounding to the
 * dtype: references compute from it. `padding` elements lie between rows, so that rows are strided.
 */
export interface HostTensor {
  dtype: DType;
  shape: readonly number[];
  values: Float32Array | Int32Array;
  padding: number;
}

/** A tensor of `dtype` whose values are `values`, rounded. */
export function host(
  dtype: DType,
  shape: readonly number[],
  values: ArrayLike<number>,
  padding = 0,
): HostTensor {
  if (values.length !== elementsOf(shape))
    throw new LozaError('ERR_LOZA_INTERNAL', `${values.length} values for [${shape}]`);
  if (dtype === 'i32') return { dtype, shape, values: Int32Array.from(values), padding };
  const rounded = Float32Array.from(values);
  if (dtype === 'bf16') mapInPlace(rounded, roundToBf16);
  if (dtype === 'f8e4m3') mapInPlace(rounded, (x) => decodeF8(encodeF8(x)));
  return { dtype, shape, values: rounded, padding };
}

/** Values in the bytes of their dtype. */
export function encode(dtype: DType, values: ArrayLike<number>): TypedArray {
  switch (dtype) {
    case 'i32':
      return Int32Array.from(values);
    case 'f32':
      return Float32Array.from(values);
    case 'bf16':
      return mapInto(new Uint16Array(values.length), values, bf16Bits);
    case 'f8e4m3':
      return mapInto(new Uint8Array(values.length), values, encodeF8);
  }
}

/** The numbers in the bytes of a dtype. */
export function decode(dtype: DType, bytes: ArrayBuffer): Float32Array | Int32Array {
  switch (dtype) {
    case 'i32':
      return new Int32Array(bytes);
    case 'f32':
      return new Float32Array(bytes);
    case 'bf16':
      return mapInto(new Float32Array(bytes.byteLength / 2), new Uint16Array(bytes), (bits) =>
        floatOf(bits << 16),
      );
    case 'f8e4m3':
      return Float32Array.from(new Uint8Array(bytes), decodeF8);
  }
}

export function elementsOf(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

// A loop: the `from` of typed arrays is slow with a function, and these arrays are large.
function mapInto<To extends TypedArray>(
  to: To,
  from: ArrayLike<number>,
  body: (x: number) => number,
): To {
  for (let i = 0; i < from.length; i++) to[i] = body(from[i]!);
  return to;
}

function mapInPlace(values: Float32Array, body: (x: number) => number): void {
  mapInto(values, values, body);
}

const asFloat = new Float32Array(1);
const asBits = new Uint32Array(asFloat.buffer);

export function bitsOf(value: number): number {
  asFloat[0] = value;
  return asBits[0]!;
}

export function floatOf(bits: number): number {
  asBits[0] = bits;
  return asFloat[0]!;
}

/** Round to nearest even of the upper half; NaN stays NaN. */
export function bf16Bits(value: number): number {
  if (Number.isNaN(value)) return 0x7fc0;
  const bits = bitsOf(value);
  const upper = bits >>> 16;
  const lower = bits & 0xffff;
  const up = lower > 0x8000 || (lower === 0x8000 && (upper & 1) === 1);
  return upper + (up ? 1 : 0);
}

export function roundToBf16(value: number): number {
  return floatOf(bf16Bits(value) << 16);
}

/** f8e4m3fn: sign, 4 exponent bits with bias 7, 3 mantissa bits; 0x7f and 0xff are NaN. */
export function decodeF8(bits: number): number {
  const exponent = (bits >> 3) & 15;
  const mantissa = bits & 7;
  const sign = bits & 0x80 ? -1 : 1;
  if (exponent === 15 && mantissa === 7) return NaN;
  if (exponent === 0) return sign * mantissa * 2 ** -9;
  return sign * (1 + mantissa / 8) * 2 ** (exponent - 7);
}

const f8Values = Float64Array.from({ length: 127 }, (_, bits) => decodeF8(bits));

/** The nearest f8e4m3 value, of two the even one (beyond the largest: the largest). */
export function encodeF8(value: number): number {
  if (Number.isNaN(value)) return 0x7f;
  const sign = value < 0 || Object.is(value, -0) ? 0x80 : 0;
  const magnitude = Math.abs(value);
  let low = 0;
  let high = 126;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (f8Values[middle]! <= magnitude) low = middle;
    else high = middle;
  }
  const [below, above] = [magnitude - f8Values[low]!, f8Values[high]! - magnitude];
  const up = above < below || (above === below && (high & 1) === 0);
  return sign | (up ? high : low);
}
