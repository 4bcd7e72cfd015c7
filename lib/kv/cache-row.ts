import { bytesPerElement } from '../native/tensor';

/** What a KV cache is kept in: activations' type, or FP8 latents. */
export type CacheDtype = 'f32' | 'bf16' | 'f8e4m3';

/**
 * Elements of a token's row. An FP8 one has a byte a latent value, two a rope value and a scale of four
 * (native/ops/latent_cache.h).
 */
export function cacheRowWidth(dtype: CacheDtype, latent: number, rope: number): number {
  return dtype === 'f8e4m3' ? latent + 2 * rope + 4 : latent + rope;
}

export function cacheRowBytes(dtype: CacheDtype, latent: number, rope: number): number {
  return cacheRowWidth(dtype, latent, rope) * bytesPerElement[dtype];
}
