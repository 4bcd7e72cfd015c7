// out[t, :] = scale * weight * x[t, :] / sqrt(mean(x[t, :]^2) + eps), one block a row.
#include "ops/rms_norm/rms_norm.cuh"

#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"

namespace loza::cuda {

namespace {

constexpr int kMaxThreads = 512;

template <class Out, class X, class Weight>
struct RmsNormArgs {
  Rows<Out> out;         // [rows, width]
  Rows<const X> x;       // [rows, width]; may be `out`
  const Weight* weight;  // [width]
  int64_t width;
  float eps, scale;
};

template <int kCount, class Out, class X, class Weight>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(RmsNormArgs<Out, X, Weight> args) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  launch_dependents();
  const RowNorm<kCount, Weight> norm(args.weight, args.width);
  wait_for_prerequisites();
  norm(args.out[row], args.x[row], args.eps, args.scale, shared);
}

}  // namespace

void launch(const RmsNormParams& params, CudaStream& stream) {
  const auto& [out, x, weight, eps, scale] = params;
  const int64_t rows = x.dim(0), width = x.dim(1);
  if (rows == 0 || width == 0) return;
  const bool vector = vectorisable(out) && vectorisable(x) && vectorisable(weight);
  const auto launch_for = [&]<class Out, class X, class Weight>(Out, X, Weight) {
    with_count(vector, [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const RmsNormArgs<Out, X, Weight> args{.out = rows_of<Out>(params.out),
                                             .x = rows_of<const X>(params.x),
                                             .weight = params.weight.as<const Weight>(),
                                             .width = width,
                                             .eps = params.eps,
                                             .scale = params.scale};
      launch_kernel("rms_norm", rms_norm_kernel<kCount, Out, X, Weight>,
                    {static_cast<unsigned>(rows), norm_threads(width / kCount, kMaxThreads)},
                    stream.handle(), args);
    });
  };
  with_float_type(out.dtype, [&]<class Out>(Out) {
    with_float_type(x.dtype, [&]<class X>(X) {
      with_float_type(weight.dtype,
                      [&]<class Weight>(Weight) { launch_for(Out{}, X{}, Weight{}); });
    });
  });
}

}  // namespace loza::cuda
