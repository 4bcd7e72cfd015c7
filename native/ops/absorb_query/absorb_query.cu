// out[t, h] = [ W_UK[h]^T q[t, h, 0:nope] | rope(q[t, h, nope:]) ].
// Few rows: one kernel, that of head_linear with the rotation as its tail. Many: one each.
#include "cuda/cuda_ops.h"
#include "ops/absorb_query/parts.h"
#include "ops/head_linear/head_rows.cuh"

namespace loza::cuda {

void launch(const AbsorbQueryParams& params, CudaStream& stream) {
  const HeadLinearParams linear = head_linear_of(params);
  const RopeParams rope = rope_of(params);
  if (params.out.elements() == 0) return;
  if (fits_head_rows(linear) && vectorisable(rope.x) && vectorisable(rope.out) &&
      vectorisable(rope.table))
    return launch_head_rows(linear, &rope.table, stream, "absorb_query");
  launch(linear, stream);
  launch(rope, stream);
}

}  // namespace loza::cuda
