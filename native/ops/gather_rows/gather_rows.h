#pragma once

#include "core/tensor.h"

namespace loza {

// out[i, :] = table[ids[i], :]. The token embedding, the rows that get logits, and the cached keys
// that expanded attention reads. Of an FP8 latent cache (ops/latent_cache.h), `width` values a row,
// latent and rope, are scale * [codes | rope].
// An id outside the table fails the stream with ERR_LOZA_INVALID_ARG.
struct GatherRowsParams {
  Tensor out;    // act | f32 [rows, width]
  Tensor table;  // f32 | bf16 [entries, width], or an FP8 latent cache
  Tensor ids;    // i32 [rows]

  void check(DType act) const;
  // Of a latent cache, whose rows are rope + 4 bytes longer than `width`.
  int64_t rope() const { return table.dim(1) - 4 - out.dim(1); }
  int64_t latent() const { return out.dim(1) - rope(); }
};

}  // namespace loza
