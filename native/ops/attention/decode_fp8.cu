#include "ops/attention/decode_fp8.h"

namespace loza::cuda::attention {

void launch_quantised(const AttentionDecodeParams& params, CudaStream& stream) {
  launch_quantised_simple(params, stream);
}

}  // namespace loza::cuda::attention
