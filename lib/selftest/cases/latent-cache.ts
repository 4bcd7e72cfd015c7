import { cacheRowWidth } from '../../kv/cache-row';
import type { Tensor } from '../../native/tensor';
import {
  bf16Bits,
  bitsOf,
  decodeF8,
  encodeF8,
  floatOf,
  host,
  type HostTensor,
} from '../host-tensor';
import { blockTokens } from './key-range';

/** Latent and rope values of a row. */
export interface RowSizes {
  latent: number;
  rope: number;
}

const largestCode = 448;
const leastScale = 2 ** -40;

/** The planes of a block's bytes, by the words of native/ops/latent_cache.h. */
function planesOf(words: Int32Array, block: number, { latent, rope }: RowSizes) {
  const bytes = blockTokens * cacheRowWidth('f8e4m3', latent, rope);
  const begin = words.byteOffset + block * bytes;
  return {
    codes: new Uint8Array(words.buffer, begin, blockTokens * latent),
    ropes: new Uint16Array(words.buffer, begin + blockTokens * latent, blockTokens * rope),
    scales: new Float32Array(words.buffer, begin + bytes - 4 * blockTokens, blockTokens),
  };
}

/**
 * Rows [slots, latent + rope] as an FP8 latent cache. Its bytes travel as integers, which the lab puts
 * between guards; `asLatentCache` shows them as what they are.
 */
export function hostLatentCache(rows: Float32Array, sizes: RowSizes): HostTensor {
  const { latent, rope } = sizes;
  const width = latent + rope;
  const slots = rows.length / width;
  const words = new Int32Array((slots * cacheRowWidth('f8e4m3', latent, rope)) / 4);
  for (let slot = 0; slot < slots; slot++) {
    const { codes, ropes, scales } = planesOf(words, Math.floor(slot / blockTokens), sizes);
    const at = slot % blockTokens;
    const row = rows.subarray(slot * width, (slot + 1) * width);
    const scale = scaleOf(row.subarray(0, latent));
    scales[at] = scale;
    for (let i = 0; i < latent; i++) codes[at * latent + i] = encodeF8(row[i]! / scale);
    for (let i = 0; i < rope; i++) ropes[at * rope + i] = bf16Bits(row[latent + i]! / scale);
  }
  const blocks = slots / blockTokens;
  return host('i32', [blocks, words.length / blocks], words);
}

/** What such bytes hold, [slots, latent + rope]. */
export function latentRows({ values, shape }: HostTensor, sizes: RowSizes): Float32Array {
  const { latent, rope } = sizes;
  const width = latent + rope;
  const slots = shape[0]! * blockTokens;
  const rows = new Float32Array(slots * width);
  for (let slot = 0; slot < slots; slot++) {
    const block = Math.floor(slot / blockTokens);
    const { codes, ropes, scales } = planesOf(values as Int32Array, block, sizes);
    const at = slot % blockTokens;
    const to = rows.subarray(slot * width, (slot + 1) * width);
    for (let i = 0; i < latent; i++) to[i] = scales[at]! * decodeF8(codes[at * latent + i]!);
    for (let i = 0; i < rope; i++)
      to[latent + i] = scales[at]! * floatOf(ropes[at * rope + i]! << 16);
  }
  return rows;
}

export function asLatentCache(words: Tensor, { latent, rope }: RowSizes): Tensor {
  const width = cacheRowWidth('f8e4m3', latent, rope);
  return words.view('f8e4m3', [words.dim(0) * blockTokens, width], [width, 1], 0);
}

/** The least power of two in which the largest magnitude of a latent is a code. */
function scaleOf(latent: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < latent.length; i++) {
    if (!Number.isFinite(latent[i])) return NaN;
    largest = Math.max(largest, Math.abs(latent[i]!));
  }
  const power = floatOf((bitsOf(largest / largestCode) + 0x7fffff) & 0x7f800000);
  return Math.max(leastScale, power);
}

/** A latent as it comes back from its codes. */
export function throughCodes(latent: ArrayLike<number>): Float64Array {
  const scale = scaleOf(latent);
  return Float64Array.from(latent, (x) => scale * decodeF8(encodeF8(x / scale)));
}
