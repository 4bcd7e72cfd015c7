// out = %globaltimer, by one thread.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"

namespace loza::cuda {

namespace {

__global__ void clock_kernel(uint32_t* out) {
  uint64_t count;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(count));
  out[0] = static_cast<uint32_t>(count);
  out[1] = static_cast<uint32_t>(count >> 32);
}

}  // namespace

void launch(const ClockParams& params, CudaStream& stream) {
  clock_kernel<<<1, 1, 0, stream.handle()>>>(params.out.as<uint32_t>());
  check_launch("clock");
}

}  // namespace loza::cuda
