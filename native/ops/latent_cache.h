// The FP8 latent cache: f8e4m3 [slots, latent + 2 rope + 4], contiguous, its slots a multiple of 128.
// The bytes of a block of 128 slots are three planes, each dense, so that bulk copies take many tokens
// of one plane at a time:
//   codes   f8e4m3 [128, latent]   the latent of slot s is scales[s] * codes[s]
//   rope    bf16   [128, rope]     the rotated key as it is
//   scales  f32    [128]           NaN where a latent was not finite
#pragma once

#include "core/tensor.h"
#include "ops/attention/key_range.h"

namespace loza {

inline constexpr float kLargestCode = 448;
inline constexpr float kLeastScale = 0x1p-40f;  // that of a row of zeros

// The scale of a row whose largest magnitude is this: the one that makes it the largest code.
LOZA_HOST_DEVICE inline float latent_scale(float largest) {
  const float scale = largest / kLargestCode;
  if (!(scale < 0x1p120f)) return scale - scale;  // NaN
  return scale > kLeastScale ? scale : kLeastScale;
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
