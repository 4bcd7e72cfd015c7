// Absorbed attention of bf16 activations over an FP8 latent cache (ops/latent_cache.h).
#pragma once

#include "ops/attention/attention.h"

namespace loza {
class CudaStream;
}

namespace loza::cuda::attention {

// By whichever kernel takes the call's sizes.
void launch_quantised(const AttentionDecodeParams& params, CudaStream& stream);
// The plan of such calls.
void launch_quantised(const AttentionPlanParams& params, CudaStream& stream);

// In plain fp32 arithmetic: any sizes.
void launch_quantised_simple(const AttentionDecodeParams& params, CudaStream& stream);

}  // namespace loza::cuda::attention
