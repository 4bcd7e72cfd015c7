// The random numbers of `sample`, shared by every backend.
#pragma once

#include <cstdint>

#include "ops/attention/key_range.h"

namespace loza {

// The finaliser of splitmix64: a bijection that spreads every input bit over the output.
LOZA_HOST_DEVICE inline uint64_t mix_bits(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
  return bits ^ (bits >> 31);
}

// Uniform in [0, 1) with 53 random bits; a pure function. The seed is mixed before the counter
// joins it, so that neighbouring seeds do not give shifted copies of one sequence.
LOZA_HOST_DEVICE inline double uniform(uint64_t seed, uint32_t counter) {
  constexpr uint64_t kGamma = 0x9e3779b97f4a7c15ull;
  const uint64_t bits = mix_bits(mix_bits(seed + kGamma) + kGamma * (counter + 1ull));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace loza
