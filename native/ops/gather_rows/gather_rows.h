#pragma once

#include "core/tensor.h"

namespace loza {

// out[i, :] = table[ids[i], :]. The token embedding, the rows that get logits, and the cached keys
// that expanded attention reads.
// An id outside the table fails the stream with ERR_LOZA_INVALID_ARG.
struct GatherRowsParams {
  Tensor out;    // act | f32 [rows, width]
  Tensor table;  // f32 | bf16 [entries, width]
  Tensor ids;    // i32 [rows]

  void check(DType act) const;
};

}  // namespace loza
