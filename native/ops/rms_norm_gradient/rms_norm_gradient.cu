// dx by one block a row. dweight by columns: rows are cut into at most kMostParts parts, each thread
// sums one column of one part, then the parts are added in order. Both depend on the shape alone.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostParts = 128, kLeastRows = 32;

struct RmsNormGradientArgs {
  FloatRows dx, dy, x;  // [rows, width]
  FloatRows weight;     // [width]
  float* inverse;       // [rows], 1 / rms
  float* parts;         // [parts, width]
  int64_t rows, width, part;
  float eps, scale;
  bool accumulate;
};

template <int kCount>
__device__ float inverse_rms(const RmsNormGradientArgs& args, int64_t row, float* shared) {
  float squares = 0, x[kCount];
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.width; i += blockDim.x * kCount) {
    args.x.load(x, row, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) squares += x[j] * x[j];
  }
  return 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(args.width) + args.eps);
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) inverse_rms_kernel(RmsNormGradientArgs args) {
  __shared__ float shared[kMaxWarps];
  const float inverse = inverse_rms<kCount>(args, blockIdx.x, shared);
  if (threadIdx.x == 0) args.inverse[blockIdx.x] = inverse;
}

// dx (+)= r * (g - x * r^2 * mean(g * x)), g = scale * weight * dy.
template <int kCount>
__global__ void __launch_bounds__(kThreads) input_gradient_kernel(RmsNormGradientArgs args) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const float r = inverse_rms<kCount>(args, row, shared), factor = args.scale * r;
  float x[kCount], dy[kCount], weight[kCount], dx[kCount], sum = 0;
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.width; i += blockDim.x * kCount) {
    args.x.load(x, row, i);
    args.dy.load(dy, row, i);
    args.weight.load(weight, 0, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) sum += dy[j] * weight[j] * x[j];
  }
  const float mean = block_sum(sum, shared) / static_cast<float>(args.width);
  const float of_x = factor * mean * r * r;
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.width; i += blockDim.x * kCount) {
    args.x.load(x, row, i);
    args.dy.load(dy, row, i);
    args.weight.load(weight, 0, i);
    if (args.accumulate) args.dx.load(dx, row, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      const float value = factor * weight[j] * dy[j] - of_x * x[j];
      dx[j] = args.accumulate ? dx[j] + value : value;
    }
    args.dx.store(row, i, dx);
  }
}

// Grid: x = columns, y = parts.
__global__ void __launch_bounds__(kThreads) weight_parts_kernel(RmsNormGradientArgs args) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= args.width) return;
  const int64_t first = blockIdx.y * args.part, end = min(args.rows, first + args.part);
  float sum = 0, dy[1], x[1];
  for (int64_t row = first; row < end; row++) {
    args.dy.load(dy, row, column);
    args.x.load(x, row, column);
    sum += dy[0] * (x[0] * (args.scale * args.inverse[row]));
  }
  args.parts[blockIdx.y * args.width + column] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(float* dweight, const float* parts, int64_t count, int64_t width) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= width) return;
  float sum = 0;
  for (int64_t part = 0; part < count; part++) sum += parts[part * width + column];
  dweight[column] += sum;
}

void add_weight_gradient(RmsNormGradientArgs args, const Tensor& dweight, bool vector,
                         CudaStream& stream) {
  args.part = std::max(kLeastRows, ceil_div(args.rows, kMostParts));
  const int64_t parts = ceil_div(args.rows, args.part);
  auto* scratch = reinterpret_cast<float*>(
      stream.scratch(static_cast<size_t>(args.rows + parts * args.width) * sizeof(float)));
  args.inverse = scratch;
  args.parts = scratch + args.rows;
  with_count(vector, [&](auto count) {
    inverse_rms_kernel<decltype(count)::value>
        <<<static_cast<unsigned>(args.rows), kThreads, 0, stream.handle()>>>(args);
  });
  const auto columns = static_cast<unsigned>(ceil_div(args.width, kThreads));
  weight_parts_kernel<<<dim3(columns, static_cast<unsigned>(parts)), kThreads, 0,
                        stream.handle()>>>(args);
  add_parts_kernel<<<columns, kThreads, 0, stream.handle()>>>(dweight.as<float>(), args.parts,
                                                              parts, args.width);
}

}  // namespace

void launch(const RmsNormGradientParams& params, CudaStream& stream) {
  const int64_t rows = params.x.dim(0), width = params.x.dim(1);
  if (rows == 0 || width == 0) return;
  const RmsNormGradientArgs args{.dx = float_rows(params.dx),
                                 .dy = float_rows(params.dy),
                                 .x = float_rows(params.x),
                                 .weight = float_rows(params.weight),
                                 .inverse = nullptr,
                                 .parts = nullptr,
                                 .rows = rows,
                                 .width = width,
                                 .part = 0,
                                 .eps = params.eps,
                                 .scale = params.scale,
                                 .accumulate = params.accumulate};
  const bool vector = all_vectorisable(params.dx, params.dy, params.x, params.weight);
  // First: dx may overwrite dy.
  if (params.dweight) add_weight_gradient(args, params.dweight, vector, stream);
  with_count(vector, [&](auto count) {
    input_gradient_kernel<decltype(count)::value>
        <<<static_cast<unsigned>(rows), kThreads, 0, stream.handle()>>>(args);
  });
  check_launch("rms_norm gradient");
}

}  // namespace loza::cuda
