// Rotation of interleaved pairs, shared by rope and latent_store.
#pragma once

namespace loza::cuda {

// (x[2p], x[2p + 1]) turns by the angle whose cosine and sine are (table[2p], table[2p + 1]).
template <int kCount>
__device__ __forceinline__ void rotate(float (&x)[kCount], const float (&table)[kCount]) {
  static_assert(kCount % 2 == 0);
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const float even = x[i], odd = x[i + 1];
    x[i] = even * table[i] - odd * table[i + 1];
    x[i + 1] = odd * table[i] + even * table[i + 1];
  }
}

}  // namespace loza::cuda
