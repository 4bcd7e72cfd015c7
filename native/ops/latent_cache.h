// The FP8 latent cache: f8e4m3 [slots, latent + 2 rope + 4], contiguous, its slots a multiple of 128.
// The bytes of a block of 128 slots are three planes, each dense, so that bulk copies take many tokens
// of one plane at a time:
//   codes   f8e4m3 [128, latent]
//   rope    bf16   [128, rope]
//   scales  f32    [128]           a power of two, or NaN where a latent was not finite
// The row of slot s, latent and rotated key, is scales[s] * [codes[s] | rope[s]].
#pragma once

#include <bit>
#include <cstdint>

#include "core/tensor.h"
#include "ops/attention/key_range.h"

namespace loza {

LOZA_HOST_DEVICE inline uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return std::bit_cast<uint32_t>(value);
#endif
}
LOZA_HOST_DEVICE inline float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

inline constexpr float kLargestCode = 448;
inline constexpr float kLeastScale = 0x1p-40f;  // that of a row of zeros

// The scale of a latent whose largest magnitude this is: the least power of two with which that is a
// code. Multiplying by it is exact, and so is the rotated key in its units.
LOZA_HOST_DEVICE inline float latent_scale(float largest) {
  const float ratio = largest / kLargestCode;
  if (!(ratio < 0x1p120f)) return ratio - ratio;  // NaN
  if (!(ratio > kLeastScale)) return kLeastScale;
  return float_of((bits_of(ratio) + 0x7fffffu) & 0x7f800000u);
}

struct LatentCache {
  char* data;
  int64_t latent, rope;

  static constexpr int64_t row_bytes(int64_t latent, int64_t rope) { return latent + 2 * rope + 4; }

  template <class Code>
  LOZA_HOST_DEVICE Code* codes(int64_t slot) const {
    return reinterpret_cast<Code*>(block(slot) + slot % kBlockTokens * latent);
  }
  template <class Bf16>
  LOZA_HOST_DEVICE Bf16* ropes(int64_t slot) const {
    const int64_t row = slot % kBlockTokens * rope;
    return reinterpret_cast<Bf16*>(block(slot) + kBlockTokens * latent) + row;
  }
  LOZA_HOST_DEVICE float* scale(int64_t slot) const {
    char* scales = block(slot) + kBlockTokens * (latent + 2 * rope);
    return reinterpret_cast<float*>(scales) + slot % kBlockTokens;
  }

 private:
  LOZA_HOST_DEVICE char* block(int64_t slot) const {
    return data + slot / kBlockTokens * kBlockTokens * (latent + 2 * rope + 4);
  }
};

inline bool is_latent_cache(const Tensor& cache) { return cache.dtype == DType::kF8E4M3; }

inline LatentCache latent_cache(const Tensor& cache, int64_t latent, int64_t rope) {
  return {cache.as<char>(), latent, rope};
}

// f32 or bf16 [slots, latent + rope], or the above.
inline void expect_latent_cache(const char* name, const Tensor& cache, int64_t latent,
                                int64_t rope) {
  if (!cache || !is_latent_cache(cache)) {
    const bool bf16 = cache && cache.dtype == DType::kBF16;
    return expect(name, cache, bf16 ? DType::kBF16 : DType::kF32, -1, latent + rope);
  }
  expect(name, cache, DType::kF8E4M3, -1, LatentCache::row_bytes(latent, rope));
  check(cache.contiguous() && cache.dim(0) % kBlockTokens == 0, name, ": expected whole blocks of ",
        kBlockTokens, " slots, got ", cache);
}

}  // namespace loza
