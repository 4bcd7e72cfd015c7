// The loss of a row and its gradient, a block a row: once over the logits for their largest and the sum
// of exponentials, once more for the gradient.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 512;

struct CrossEntropyArgs {
  float* loss;             // [rows]
  FloatRows dlogits;       // [rows, vocabulary], or null; may be `logits`
  FloatRows logits;        // [rows, vocabulary]
  const int32_t* targets;  // [rows]
  const float* weights;    // [rows]
  int64_t vocabulary;
};

// sum exp(x - largest) of what a thread has seen.
struct Online {
  float largest = -INFINITY, sum = 0;

  template <int kCount>
  __device__ __forceinline__ void add(const float (&x)[kCount]) {
    float most = largest;
#pragma unroll
    for (int j = 0; j < kCount; j++) most = fmaxf(most, x[j]);
    if (most == -INFINITY) return;
    if (most > largest) {
      sum *= expf(largest - most);
      largest = most;
    }
#pragma unroll
    for (int j = 0; j < kCount; j++) sum += expf(x[j] - largest);
  }
};

template <int kCount>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropyArgs args) {
  __shared__ float shared[kMaxWarps];
  constexpr int64_t kStep = kThreads * kCount;
  const int64_t row = blockIdx.x, first = int64_t{threadIdx.x} * kCount;
  const int32_t target = args.targets[row];
  const float weight = args.weights[row];
  const bool counts = weight != 0, known = target >= 0 && target < args.vocabulary;
  float x[kCount], at_target[1] = {__int_as_float(0x7fc00000)};
  if (counts && known) args.logits.load(at_target, row, target);
  Online online;
  for (int64_t i = counts ? first : args.vocabulary; i < args.vocabulary; i += kStep) {
    args.logits.load(x, row, i);
    online.add(x);
  }
  const float largest = block_max(online.largest, shared);
  const float scaled = online.sum == 0 ? 0.0f : online.sum * expf(online.largest - largest);
  const float sum = block_sum(scaled, shared);
  const float loss = logf(sum) + (largest - at_target[0]);
  if (threadIdx.x == 0) args.loss[row] = counts ? weight * loss : 0.0f;
  if (args.dlogits.data == nullptr) return;
  const float factor = known ? weight / sum : at_target[0];
  for (int64_t i = first; i < args.vocabulary; i += kStep) {
    args.logits.load(x, row, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      const float p = factor * expf(x[j] - largest);
      x[j] = !counts ? 0.0f : i + j == target ? weight * expm1f(-loss) : p;
    }
    args.dlogits.store(row, i, x);
  }
}

}  // namespace

void launch(const CrossEntropyParams& params, CudaStream& stream) {
  const int64_t rows = params.logits.dim(0);
  if (rows == 0) return;
  const CrossEntropyArgs args{.loss = params.loss.as<float>(),
                              .dlogits = float_rows(params.dlogits),
                              .logits = float_rows(params.logits),
                              .targets = params.targets.as<const int32_t>(),
                              .weights = params.weights.as<const float>(),
                              .vocabulary = params.logits.dim(1)};
  with_count(all_vectorisable(params.dlogits, params.logits), [&](auto count) {
    cross_entropy_kernel<decltype(count)::value>
        <<<static_cast<unsigned>(rows), kThreads, 0, stream.handle()>>>(args);
  });
  check_launch("cross_entropy");
}

}  // namespace loza::cuda
