// The CUDA backend: `launch` of an operation is defined in the operation's .cu file and enqueues its
// kernels on the stream. Shapes were checked; everything a kernel reads, it reads when it runs.
#pragma once

#include "cuda/cuda_stream.h"
#include "ops/ops.h"

namespace loza {

namespace cuda {
#define LOZA_DECLARE(Op) void launch(const Op##Params& params, CudaStream& stream);
LOZA_FOR_EACH_OP(LOZA_DECLARE)
#undef LOZA_DECLARE
}  // namespace cuda

class CudaOps final : public Ops {
 public:
  explicit CudaOps(CudaStream& stream) : stream_(stream) {}
  DType activation() const override { return DType::kBF16; }
#define LOZA_DEFINE(Op) \
  void run(const Op##Params& params) override { cuda::launch(params, stream_); }
  LOZA_FOR_EACH_OP(LOZA_DEFINE)
#undef LOZA_DEFINE

 private:
  CudaStream& stream_;
};

}  // namespace loza
