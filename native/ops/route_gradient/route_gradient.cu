// The gradient of the router's logits, a warp a row.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kWarps = 4;

struct RouteGradientArgs {
  FloatRows dlogits;           // [rows, experts]
  Rows<const float> dweights;  // [rows, top_k]
  Rows<const float> logits;    // [rows, experts]
  Rows<const int32_t> ids;     // [rows, top_k]
  int64_t rows;
  int experts, top_k;
  bool softmax, normalize;
  float scale;
};

// p = factor * exp(logit - largest), or the sigmoid.
struct Scores {
  const float* logits;
  float largest, factor;
  bool softmax;

  __device__ __forceinline__ float operator()(int expert) const {
    if (softmax) return factor * expf(logits[expert] - largest);
    return 1.0f / (1.0f + expf(-logits[expert]));
  }
};

__device__ __forceinline__ Scores scores_of(const float* logits, const RouteGradientArgs& args,
                                            int lane) {
  if (!args.softmax) return {logits, 0, 1, false};
  float largest = -INFINITY, sum = 0;
  for (int e = lane; e < args.experts; e += kWarpSize) largest = fmaxf(largest, logits[e]);
  largest = warp_max(largest);
  for (int e = lane; e < args.experts; e += kWarpSize) sum += expf(logits[e] - largest);
  return {logits, largest, 1.0f / warp_sum(sum), true};
}

__global__ void __launch_bounds__(kWarps* kWarpSize) route_gradient_kernel(RouteGradientArgs args) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (row >= args.rows) return;
  const Scores p = scores_of(args.logits[row], args, lane);
  const float* dweights = args.dweights[row];
  const int32_t* ids = args.ids[row];
  float sum = 0, weighted = 0;
  for (int i = lane; i < args.top_k; i += kWarpSize) {
    const float score = p(ids[i]);
    sum += score;
    weighted += dweights[i] * score;
  }
  const float chosen = warp_sum(sum), total = chosen + 1e-20f;
  weighted = warp_sum(weighted);
  const float factor = args.normalize ? args.scale / total : args.scale;
  const float shift = args.normalize ? weighted / total : 0.0f;
  const float mean = args.softmax ? factor * (weighted - shift * chosen) : 0.0f;
  for (int e = lane; e < args.experts; e += kWarpSize) {
    const float value[1] = {args.softmax ? -p(e) * mean : 0.0f};
    args.dlogits.store(row, e, value);
  }
  __syncwarp();  // the chosen ones replace what another lane has just written
  for (int i = lane; i < args.top_k; i += kWarpSize) {
    const float dp = factor * (dweights[i] - shift), score = p(ids[i]);
    const float value[1] = {args.softmax ? score * (dp - mean) : score * (1.0f - score) * dp};
    args.dlogits.store(row, ids[i], value);
  }
}

}  // namespace

void launch(const RouteGradientParams& params, CudaStream& stream) {
  const int64_t rows = params.logits.dim(0);
  if (rows == 0) return;
  const RouteGradientArgs args{.dlogits = float_rows(params.dlogits),
                               .dweights = rows_of<const float>(params.dweights),
                               .logits = rows_of<const float>(params.logits),
                               .ids = rows_of<const int32_t>(params.ids),
                               .rows = rows,
                               .experts = static_cast<int>(params.logits.dim(1)),
                               .top_k = static_cast<int>(params.ids.dim(1)),
                               .softmax = params.scoring == Scoring::kSoftmax,
                               .normalize = params.normalize,
                               .scale = params.scale};
  route_gradient_kernel<<<static_cast<unsigned>(ceil_div(rows, kWarps)), kWarps * kWarpSize, 0,
                          stream.handle()>>>(args);
  check_launch("route gradient");
}

}  // namespace loza::cuda
