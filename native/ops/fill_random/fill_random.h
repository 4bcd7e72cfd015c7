#pragma once

#include "core/tensor.h"
#include "ops/sample/uniform.h"

namespace loza {

// out = random, everywhere: uniform with mean 0 and standard deviation `deviation`, rounded to the
// dtype. Element i is a pure function of (seed, i), the same on every backend. Dummy weights and the
// inputs of benchmarks.
struct FillRandomParams {
  Tensor out;  // f32 | bf16 | f8e4m3, contiguous, aligned to two elements
  int32_t seed_low = 0;
  int32_t seed_high = 0;
  float deviation = 1;

  void check(DType act) const;

  uint64_t seed() const {
    return static_cast<uint64_t>(static_cast<uint32_t>(seed_high)) << 32 |
           static_cast<uint32_t>(seed_low);
  }
  // The largest magnitude over 2^23: what the integers of random_pair are multiplied by.
  float unit() const { return deviation * 0x1.bb67aep0f * 0x1p-23f; }
};

// The integers of elements 2 * pair and 2 * pair + 1, in [-2^23, 2^23): exact as fp32.
struct RandomPair {
  int32_t first, second;
};
LOZA_HOST_DEVICE inline RandomPair random_pair(uint64_t seed, int64_t pair) {
  constexpr uint64_t kGamma = 0x9e3779b97f4a7c15ull;
  constexpr int32_t kHalf = 1 << 23;
  const uint64_t bits = mix_bits(seed + kGamma * (static_cast<uint64_t>(pair) + 1));
  return {static_cast<int32_t>(bits & 0xffffff) - kHalf, static_cast<int32_t>(bits >> 40) - kHalf};
}

}  // namespace loza
