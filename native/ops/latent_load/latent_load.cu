// out[i, :] = cache[slots[i], :], 16 bytes a thread.
#include "cuda/cuda_ops.h"
#include "ops/gather_rows/gather_rows.cuh"

namespace loza::cuda {

void launch(const LatentLoadParams& params, CudaStream& stream) {
  launch_gather("latent_load", params.out, params.cache, params.slots, stream);
}

}  // namespace loza::cuda
