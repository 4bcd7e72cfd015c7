#pragma once

#include "core/tensor.h"

namespace loza {

// The gradient of gather_rows, out[i, :] = table[ids[i], :]:
//   dtable[ids[i], :] += dout[i, :], i ascending (deterministic)
// An id outside the table fails the stream on the CPU; on CUDA its row is passed over.
struct GatherRowsGradientParams {
  Tensor dtable;  // f32 [entries, width]
  Tensor dout;    // act | f32 [rows, width]
  Tensor ids;     // i32 [rows]

  void check(DType act) const;
};

}  // namespace loza
