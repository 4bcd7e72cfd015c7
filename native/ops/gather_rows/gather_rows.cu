// out[i, :] = table[ids[i], :], 16 bytes a thread.
#include "ops/gather_rows/gather_rows.cuh"

#include "cuda/cuda_ops.h"

namespace loza::cuda {

void launch(const GatherRowsParams& params, CudaStream& stream) {
  launch_gather("gather_rows", params.out, params.table, params.ids, stream);
}

}  // namespace loza::cuda
