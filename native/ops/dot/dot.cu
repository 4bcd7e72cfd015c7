// Every block sums a fixed part in float64, then one block sums the parts. How the elements are shared
// out depends on their number alone.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostParts = 1024;

struct DotArgs {
  FloatRows x, y;
  double* parts;
  int64_t items;  // of kCount elements
};

template <int kCount>
__global__ void __launch_bounds__(kThreads) dot_kernel(DotArgs args) {
  __shared__ double shared[kMaxWarps];
  double sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; item < args.items; item += step) {
    float x[kCount], y[kCount];
    args.x.load(x, 0, item * kCount);
    args.y.load(y, 0, item * kCount);
#pragma unroll
    for (int j = 0; j < kCount; j++) sum += double{x[j]} * y[j];
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) args.parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(float* out, const double* parts, int count) {
  __shared__ double shared[kMaxWarps];
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += parts[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) *out = static_cast<float>(sum);
}

// The tensor as one row.
Tensor flat(Tensor tensor) {
  tensor.shape[0] = tensor.elements();
  tensor.strides[0] = 1;
  tensor.rank = 1;
  return tensor;
}

}  // namespace

void launch(const DotParams& params, CudaStream& stream) {
  const Tensor x = flat(params.x), y = flat(params.y);
  auto* parts = reinterpret_cast<double*>(stream.scratch(kMostParts * sizeof(double)));
  with_count(all_vectorisable(x, y), [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    const DotArgs args{float_rows(x), float_rows(y), parts, x.elements() / kCount};
    const int64_t blocks = std::clamp<int64_t>(ceil_div(args.items, kThreads), 1, kMostParts);
    dot_kernel<kCount><<<static_cast<unsigned>(blocks), kThreads, 0, stream.handle()>>>(args);
    add_parts_kernel<<<1, kThreads, 0, stream.handle()>>>(params.out.as<float>(), parts,
                                                          static_cast<int>(blocks));
  });
  check_launch("dot");
}

}  // namespace loza::cuda
