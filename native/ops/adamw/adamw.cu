// One step of AdamW, an element a thread and turn; and the factor that clips a gradient's norm.
#include "cuda/cuda_ops.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"
#include "ops/adamw/factors.h"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerMultiprocessor = 8;

struct AdamwArgs {
  float *weight, *m, *v;
  const float *gradient, *clip;  // clip may be null
  AdamwFactors factors;
  int64_t count;
};

template <class Copy>
__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamwArgs args, Copy* copy) {
  const float clip = args.clip == nullptr ? 1.0f : args.clip[1];
  if (isnan(clip)) return;
  const AdamwFactors& f = args.factors;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < args.count; i += step) {
    const float g = clip * args.gradient[i];
    const float m = f.beta1 * args.m[i] + (1 - f.beta1) * g;
    const float v = f.beta2 * args.v[i] + (1 - f.beta2) * g * g;
    const float weight = f.keep * args.weight[i] - f.rate * m / (sqrtf(v) * f.root + f.eps);
    args.m[i] = m;
    args.v[i] = v;
    args.weight[i] = weight;
    if (copy != nullptr) copy[i] = narrow<Copy>(weight);
  }
}

__global__ void __launch_bounds__(kThreads)
    clip_factor_kernel(float* clip, const float* squares, int64_t count, float limit) {
  __shared__ double shared[kMaxWarps];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += squares[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x != 0) return;
  const double norm = sqrt(sum);
  const float factor = limit > 0 && norm > limit ? static_cast<float>(limit / norm) : 1.0f;
  clip[0] = static_cast<float>(norm);
  clip[1] = isfinite(clip[0]) ? factor : __int_as_float(0x7fc00000);
}

}  // namespace

void launch(const AdamwParams& params, CudaStream& stream) {
  const int64_t count = params.weight.elements();
  if (count == 0) return;
  const AdamwArgs args{.weight = params.weight.as<float>(),
                       .m = params.m.as<float>(),
                       .v = params.v.as<float>(),
                       .gradient = params.gradient.as<const float>(),
                       .clip = params.clip.as<const float>(),
                       .factors = AdamwFactors(params),
                       .count = count};
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(
      ceil_div(count, kThreads), stream.multiprocessors() * kBlocksPerMultiprocessor));
  with_float_type(params.copy ? params.copy.dtype : DType::kF32, [&]<class Copy>(Copy) {
    adamw_kernel<<<blocks, kThreads, 0, stream.handle()>>>(args, params.copy.as<Copy>());
  });
  check_launch("adamw");
}

void launch(const ClipFactorParams& params, CudaStream& stream) {
  clip_factor_kernel<<<1, kThreads, 0, stream.handle()>>>(params.clip.as<float>(),
                                                          params.squares.as<const float>(),
                                                          params.squares.dim(0), params.limit);
  check_launch("clip_factor");
}

}  // namespace loza::cuda
