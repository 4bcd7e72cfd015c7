// The gradients of combine, a block a row, its slots one after the other.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;

struct CombineGradientArgs {
  FloatRows dy, y;                // [slots, width]
  FloatRows dout;                 // [rows, width]
  FloatRows identity, didentity;  // [rows, width], or null
  Rows<float> dweights;           // [rows, top_k]
  Rows<const float> weights;      // [rows, top_k]
  const int32_t* place;           // [slots]
  int64_t width, slots;
  int top_k;
};

// A place that cannot be (outside y, or a zero expert without identity) gives a NaN gradient of its
// weight: a kernel cannot fail the stream.
template <int kCount>
__global__ void __launch_bounds__(kThreads) combine_gradient_kernel(CombineGradientArgs args) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  for (int slot = 0; slot < args.top_k; slot++) {
    const int32_t place = args.place[row * args.top_k + slot];
    const float weight = args.weights[row][slot];
    const bool zero = place < 0;
    const bool valid = zero ? args.identity.data != nullptr : place < args.slots;
    float sum = valid ? 0.0f : __int_as_float(0x7fc00000);
    const int64_t end = valid ? args.width : 0;
    for (int64_t i = int64_t{threadIdx.x} * kCount; i < end; i += kThreads * kCount) {
      float dout[kCount], value[kCount];
      args.dout.load(dout, row, i);
      if (zero)
        args.identity.load(value, row, i);
      else
        args.y.load(value, place, i);
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        sum += dout[j] * value[j];
        dout[j] *= weight;
      }
      if (!zero) {
        args.dy.store(place, i, dout);
        continue;
      }
      args.didentity.load(value, row, i);
#pragma unroll
      for (int j = 0; j < kCount; j++) value[j] += dout[j];
      args.didentity.store(row, i, value);
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) args.dweights[row][slot] = sum;
  }
}

}  // namespace

void launch(const CombineGradientParams& params, CudaStream& stream) {
  const int64_t rows = params.weights.dim(0);
  if (rows == 0) return;
  const CombineGradientArgs args{.dy = float_rows(params.dy),
                                 .y = float_rows(params.y),
                                 .dout = float_rows(params.dout),
                                 .identity = float_rows(params.identity),
                                 .didentity = float_rows(params.didentity),
                                 .dweights = rows_of<float>(params.dweights),
                                 .weights = rows_of<const float>(params.weights),
                                 .place = params.place.as<const int32_t>(),
                                 .width = params.y.dim(1),
                                 .slots = params.y.dim(0),
                                 .top_k = static_cast<int>(params.weights.dim(1))};
  with_count(all_vectorisable(params.dy, params.y, params.dout, params.identity, params.didentity),
             [&](auto count) {
               combine_gradient_kernel<decltype(count)::value>
                   <<<static_cast<unsigned>(rows), kThreads, 0, stream.handle()>>>(args);
             });
  check_launch("combine gradient");
}

}  // namespace loza::cuda
