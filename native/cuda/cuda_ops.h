// The CUDA backend: `launch` of an operation is defined in the operation's .cu file and enqueues its
// kernels on the stream. Shapes were checked; everything a kernel reads, it reads when it runs.
// Activations are bf16 or f32, which `launch` sees by the dtypes of its tensors. Operations that tensor
// cores compute have kernels of their own for f32: `launch_exact`, in fp32 arithmetic.
#pragma once

#include "cuda/cuda_stream.h"
#include "ops/ops.h"

namespace loza {

namespace cuda {
#define LOZA_DECLARE(Op) void launch(const Op##Params& params, CudaStream& stream);
LOZA_FOR_EACH_OP(LOZA_DECLARE)
#undef LOZA_DECLARE

void launch_exact(const AbsorbQueryParams& params, CudaStream& stream);
void launch_exact(const AttentionBackwardParams& params, CudaStream& stream);
void launch_exact(const AttentionDecodeParams& params, CudaStream& stream);
void launch_exact(const AttentionPrefillParams& params, CudaStream& stream);
void launch_exact(const GroupedLinearInputGradientParams& params, CudaStream& stream);
void launch_exact(const GroupedLinearParams& params, CudaStream& stream);
void launch_exact(const GroupedLinearWeightGradientParams& params, CudaStream& stream);
void launch_exact(const HeadLinearParams& params, CudaStream& stream);
void launch_exact(const LinearInputGradientParams& params, CudaStream& stream);
void launch_exact(const LinearParams& params, CudaStream& stream);
void launch_exact(const LinearWeightGradientParams& params, CudaStream& stream);
}  // namespace cuda

class CudaOps final : public Ops {
 public:
  CudaOps(CudaStream& stream, DType activation) : stream_(stream), activation_(activation) {}
  DType activation() const override { return activation_; }
#define LOZA_DEFINE(Op) \
  void run(const Op##Params& params) override { dispatch(params); }
  LOZA_FOR_EACH_OP(LOZA_DEFINE)
#undef LOZA_DEFINE

 private:
  template <class Params>
  void dispatch(const Params& params) {
    if constexpr (requires { cuda::launch_exact(params, stream_); })
      if (activation_ == DType::kF32) return cuda::launch_exact(params, stream_);
    cuda::launch(params, stream_);
  }

  CudaStream& stream_;
  DType activation_;
};

}  // namespace loza
