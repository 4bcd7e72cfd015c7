// The weighted mean squared difference of a row and its gradient, a block a row.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;

struct SquaredDifferenceArgs {
  float* loss;           // [rows]
  FloatRows dx;          // [rows, width], or null; may be `x`
  FloatRows x, target;   // [rows, width]
  const float* weights;  // [rows]
  int64_t width;
};

template <int kCount>
__global__ void __launch_bounds__(kThreads) squared_difference_kernel(SquaredDifferenceArgs args) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const float factor = args.weights[row] / static_cast<float>(args.width);
  float sum = 0, x[kCount], target[kCount];
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.width; i += kThreads * kCount) {
    args.x.load(x, row, i);
    args.target.load(target, row, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      const float difference = x[j] - target[j];
      sum += difference * difference;
      x[j] = 2.0f * factor * difference;
    }
    if (args.dx.data != nullptr) args.dx.store(row, i, x);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) args.loss[row] = factor * sum;
}

}  // namespace

void launch(const SquaredDifferenceParams& params, CudaStream& stream) {
  const int64_t rows = params.x.dim(0);
  if (rows == 0) return;
  const SquaredDifferenceArgs args{.loss = params.loss.as<float>(),
                                   .dx = float_rows(params.dx),
                                   .x = float_rows(params.x),
                                   .target = float_rows(params.target),
                                   .weights = params.weights.as<const float>(),
                                   .width = params.x.dim(1)};
  with_count(all_vectorisable(params.dx, params.x, params.target), [&](auto count) {
    squared_difference_kernel<decltype(count)::value>
        <<<static_cast<unsigned>(rows), kThreads, 0, stream.handle()>>>(args);
  });
  check_launch("squared_difference");
}

}  // namespace loza::cuda
