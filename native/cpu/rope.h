// Rotation of one row of interleaved pairs, shared by rope and latent_store.
#pragma once

#include "cpu/convert.h"
#include "cpu/simd.h"

namespace loza::cpu {

// (x[2p], x[2p + 1]) turns by the angle whose cosine and sine are (table[2p], table[2p + 1]).
// `out` may be `x`.
template <class Out>
LOZA_MULTIVERSION void rotate_row(Out* out, const float* x, const float* table, int64_t pairs) {
#pragma GCC ivdep
  for (int64_t p = 0; p < pairs; p++) {
    const float even = x[2 * p], odd = x[2 * p + 1];
    const float cosine = table[2 * p], sine = table[2 * p + 1];
    out[2 * p] = narrow<Out>(even * cosine - odd * sine);
    out[2 * p + 1] = narrow<Out>(odd * cosine + even * sine);
  }
}

}  // namespace loza::cpu
