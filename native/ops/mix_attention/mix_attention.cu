// The mix of full and streaming attention and its reverse mode, 8 elements a thread:
//   out = alpha full + (1 - alpha) streaming
//   d_full = alpha d_out, d_streaming = (1 - alpha) d_out, d_alpha += sum(d_out (full - streaming))
// The sum takes two passes: blocks sum what they pass by, the last kernel sums the blocks in order.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;  // not of the device: the order of sums depends on sizes alone

// Contiguous tensors of `elements`; what is not wanted is null.
template <class Act, class Source>
struct MixArgs {
  Act* out;  // or d_full
  Act* d_streaming;
  const Act* d_out;
  const Source* full;
  const Source* streaming;
  const float* alpha;  // [1]
  float* partial;      // [blocks]
  int64_t elements;
};

__device__ inline float mix(float alpha, float full, float streaming) {
  const float difference = full - streaming;
  if (alpha == 0) return streaming;
  return alpha == 1 || difference == 0 ? full : fmaf(alpha, difference, streaming);
}

template <int kCount, class Act, class Source>
__global__ void __launch_bounds__(kThreads) mix_kernel(MixArgs<Act, Source> args) {
  launch_dependents();
  wait_for_prerequisites();
  const float alpha = *args.alpha;
  const int64_t step = int64_t{gridDim.x} * kThreads * kCount;
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount; at < args.elements;
       at += step) {
    float full[kCount], streaming[kCount];
    load(full, args.full + at);
    load(streaming, args.streaming + at);
#pragma unroll
    for (int i = 0; i < kCount; i++) full[i] = mix(alpha, full[i], streaming[i]);
    store(args.out + at, full);
  }
}

template <int kCount, class Act>
__device__ inline void store_scaled(Act* to, const float (&values)[kCount], float factor) {
  float scaled[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i++) scaled[i] = factor * values[i];
  store(to, scaled);
}

template <int kCount, class Act, class Source>
__global__ void __launch_bounds__(kThreads) mix_backward_kernel(MixArgs<Act, Source> args) {
  __shared__ float exchange[kMaxWarps];
  launch_dependents();
  wait_for_prerequisites();
  const float alpha = *args.alpha;
  const int64_t step = int64_t{gridDim.x} * kThreads * kCount;
  float sum = 0;
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount; at < args.elements;
       at += step) {
    float d_out[kCount], full[kCount], streaming[kCount];
    load(d_out, args.d_out + at);
    load(full, args.full + at);
    load(streaming, args.streaming + at);
#pragma unroll
    for (int i = 0; i < kCount; i++) sum = fmaf(d_out[i], full[i] - streaming[i], sum);
    if (args.out) store_scaled(args.out + at, d_out, alpha);
    if (args.d_streaming) store_scaled(args.d_streaming + at, d_out, 1 - alpha);
  }
  sum = block_sum(sum, exchange);
  if (threadIdx.x == 0) args.partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(float* d_alpha, const float* partial, int64_t count) {
  __shared__ float exchange[kMaxWarps];
  launch_dependents();
  wait_for_prerequisites();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum(sum, exchange);
  if (threadIdx.x == 0) *d_alpha += sum;
}

bool aligned(const Tensor& tensor) {
  return !tensor || reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
}

Grid grid_of(int64_t elements, int count) {
  const int64_t blocks = ceil_div(elements, int64_t{kThreads} * count);
  return {dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks))), dim3(kThreads)};
}

}  // namespace

void launch(const MixAttentionParams& params, CudaStream& stream) {
  const int64_t elements = params.out.elements();
  if (elements == 0) return;
  const bool vector = elements % kVector == 0 && aligned(params.out) && aligned(params.full) &&
                      aligned(params.streaming);
  with_float_type(params.out.dtype, [&]<class Act>(Act) {
    with_float_type(params.full.dtype, [&]<class Source>(Source) {
      const MixArgs<Act, Source> args{.out = params.out.as<Act>(),
                                      .full = params.full.as<const Source>(),
                                      .streaming = params.streaming.as<const Source>(),
                                      .alpha = params.alpha.as<const float>(),
                                      .elements = elements};
      with_count(vector, [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        launch_kernel("mix_attention", mix_kernel<kCount, Act, Source>, grid_of(elements, kCount),
                      stream.handle(), args);
      });
    });
  });
}

void launch(const MixAttentionBackwardParams& params, CudaStream& stream) {
  const int64_t elements = params.d_out.elements();
  if (elements == 0) return;
  const bool vector = elements % kVector == 0 && aligned(params.d_full) &&
                      aligned(params.d_streaming) && aligned(params.d_out) &&
                      aligned(params.full) && aligned(params.streaming);
  auto* partial = reinterpret_cast<float*>(stream.scratch(kMaxBlocks * sizeof(float)));
  with_float_type(params.d_out.dtype, [&]<class Act>(Act) {
    with_float_type(params.full.dtype, [&]<class Source>(Source) {
      const MixArgs<Act, Source> args{.out = params.d_full.as<Act>(),
                                      .d_streaming = params.d_streaming.as<Act>(),
                                      .d_out = params.d_out.as<const Act>(),
                                      .full = params.full.as<const Source>(),
                                      .streaming = params.streaming.as<const Source>(),
                                      .alpha = params.alpha.as<const float>(),
                                      .partial = partial,
                                      .elements = elements};
      with_count(vector, [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        const Grid grid = grid_of(elements, kCount);
        launch_kernel("mix_attention_backward", mix_backward_kernel<kCount, Act, Source>, grid,
                      stream.handle(), args);
        launch_kernel("mix_attention_backward", add_partials_kernel, {dim3(1), dim3(kThreads)},
                      stream.handle(), params.d_alpha.as<float>(), partial, int64_t{grid.blocks.x});
      });
    });
  });
}

}  // namespace loza::cuda
