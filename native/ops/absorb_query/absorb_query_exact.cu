// The query of absorbed attention with f32 activations: its two parts, one after the other.
#include "cuda/cuda_ops.h"
#include "ops/absorb_query/parts.h"

namespace loza::cuda {

void launch_exact(const AbsorbQueryParams& params, CudaStream& stream) {
  launch_exact(head_linear_of(params), stream);
  launch(rope_of(params), stream);
}

}  // namespace loza::cuda
