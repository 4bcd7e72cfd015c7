// The kernel of expanded attention for released head sizes; see prefill_wgmma.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "ops/attention/prefill_problem.cuh"

namespace loza::cuda::attention {

// Whether it computes heads of these sizes: LongCat's and DeepSeek's 128 + 64 / 128, GLM's
// 192 + 64 / 256, on 16-byte chunks.
bool has_wgmma_prefill(const PrefillProblem& problem, const Tensor& out);

// Bytes of device memory that a call uses until it is done.
size_t wgmma_prefill_scratch(const PrefillProblem& problem);

void launch_wgmma_prefill(const AttentionPrefillParams& params, const PrefillProblem& problem,
                          std::byte* scratch, int multiprocessors, cudaStream_t stream);

}  // namespace loza::cuda::attention
