#include "cuda/stream_gemm.h"

#include "cuda/stream_gemm.cuh"

namespace loza::cuda {
namespace {

constexpr int kSharedLimit = 112 * 1024;  // two CTAs a multiprocessor, of this kernel or the next

int64_t experts_of(const StreamProduct& product) {
  return product.weight.rank == 3 ? product.weight.dim(0) : 1;
}

// Bytes from one index of a dimension to the next; where there is only one, any multiple of 16 will
// do.
uint64_t stride_bytes(const Tensor& tensor, int dim) {
  if (tensor.dim(dim) <= 1) return static_cast<uint64_t>(ceil_div(tensor.dim(-1) * 4, 16) * 16);
  return static_cast<uint64_t>(tensor.stride(dim) * size_of(tensor.dtype));
}

template <class T>
TensorMap weight_map(const Tensor& weight) {
  const uint64_t sizes[3] = {static_cast<uint64_t>(weight.dim(-1)),
                             static_cast<uint64_t>(weight.dim(-2)),
                             static_cast<uint64_t>(weight.rank == 3 ? weight.dim(0) : 1)};
  const uint64_t rows = stride_bytes(weight, -2);
  const uint64_t strides[2] = {rows, weight.rank == 3 ? stride_bytes(weight, 0) : rows};
  const uint32_t box[3] = {T::kDepth, T::kTile, 1};
  return make_tensor_map(weight.dtype, weight.data, sizes, strides, box, Swizzle::k128Bytes);
}

template <class T>
TensorMap x_map(const Tensor& x, bool gathered) {
  const uint64_t sizes[2] = {static_cast<uint64_t>(x.dim(1)), static_cast<uint64_t>(x.dim(0))};
  const uint64_t strides[1] = {stride_bytes(x, 0)};
  const uint32_t box[2] = {T::kDepth, gathered ? 1u : static_cast<uint32_t>(T::kRows)};
  return make_tensor_map(x.dtype, x.data, sizes, strides, box, Swizzle::k128Bytes);
}

template <class T>
StreamParams params_of(const StreamProduct& product, const StreamPlan& plan) {
  const Tensor &out = product.out, &weight = product.weight, &scale = product.weight_scale;
  const Tensor& x_scale = product.x_scale;
  constexpr auto kFixed = static_cast<int>(sizeof(StreamStorage<T>));
  static_assert(kFixed + T::kPartialBytes + 2 * T::kStageBytes <= kSharedLimit);
  const int room = kSharedLimit - kFixed - (plan.split > 1 ? T::kPartialBytes : 0);
  return {.out = out.data,
          .weight_scale = scale.as<const float>(),
          .x_scale = x_scale.as<const float>(),
          .starts = product.starts.as<const int32_t>(),
          .order = product.order.as<const int32_t>(),
          .out_stride = out.stride(0),
          .weight_scale_stride = scale ? scale.stride(-2) : 0,
          .weight_scale_expert_stride = scale && scale.rank == 3 ? scale.stride(0) : 0,
          .x_scale_row_stride = x_scale ? x_scale.stride(0) : 0,
          .x_scale_block_stride = x_scale ? x_scale.stride(1) : 0,
          .rows = static_cast<int>(out.dim(0)),
          .n = static_cast<int>(weight.dim(-2)),
          .experts = static_cast<int>(experts_of(product)),
          .top_k = product.top_k,
          .boxes = static_cast<int>(ceil_div(weight.dim(-1), T::kDepth)),
          .split = plan.split,
          .stages = std::min(room / T::kStageBytes, kMostStages),
          .out_is_f32 = out.dtype == DType::kF32,
          .accumulate = product.accumulate};
}

// How many units there can be: the experts' rows are known on the device only.
template <class T>
int64_t most_units(const StreamProduct& product) {
  const int64_t columns = ceil_div(product.weight.dim(-2), T::kTile);
  if (!product.starts) return columns;
  const int64_t slots = product.out.dim(0);
  return columns * std::min(slots, slots / T::kRows + experts_of(product));
}

template <class T>
void launch_plan(const StreamProduct& product, const StreamPlan& plan, cudaStream_t stream,
                 const char* operation) {
  const StreamParams params = params_of<T>(product, plan);
  allow_shared(stream_kernel<T>, kSharedLimit, operation);
  const int64_t units = most_units<T>(product);
  const int64_t ctas = plan.split > 1 ? units * plan.split : std::min<int64_t>(units, plan.ctas);
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(plan.split), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(T::kThreads);
  config.dynamicSmemBytes = kSharedLimit;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = plan.split > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, stream_kernel<T>, weight_map<T>(product.weight),
                           x_map<T>(product.x, static_cast<bool>(product.order)), params),
        operation);
}

template <class Weight, int kRows>
void launch_tile(const StreamProduct& product, const StreamPlan& plan, cudaStream_t stream,
                 const char* operation) {
  if (plan.tile == 64)
    return launch_plan<StreamTraits<Weight, kRows, 64>>(product, plan, stream, operation);
  launch_plan<StreamTraits<Weight, kRows, 128>>(product, plan, stream, operation);
}

template <class Weight>
void launch_rows(const StreamProduct& product, const StreamPlan& plan, cudaStream_t stream,
                 const char* operation) {
  if (plan.rows <= 8) return launch_tile<Weight, 8>(product, plan, stream, operation);
  if (plan.rows <= 16) return launch_tile<Weight, 16>(product, plan, stream, operation);
  if (plan.rows <= 32) return launch_tile<Weight, 32>(product, plan, stream, operation);
  launch_tile<Weight, 64>(product, plan, stream, operation);
}

constexpr int64_t kEnoughCtas = 140;

// Among how many CTAs k is shared, by the weight's shape alone. A split costs a microsecond or two:
// short rows are not split where tiles of 64 give work to most multiprocessors, the others until
// tiles of 128 give it to all.
int split_of(const Tensor& weight) {
  constexpr int64_t kMost = 8, kShortRow = 4096, kMostSmallTiles = 100, kLeastBoxes = 6;
  const int64_t n = weight.dim(-2), bytes = weight.dim(-1) * size_of(weight.dtype);
  if (bytes <= kShortRow && ceil_div(n, 64) >= kMostSmallTiles) return 1;
  int64_t split = 1;
  while (split < kMost && ceil_div(n, 128) * split < kEnoughCtas &&
         bytes >= 2 * split * kLeastBoxes * 128)
    split *= 2;
  return static_cast<int>(split);
}

}  // namespace

StreamPlan plan_stream(const StreamProduct& product, int multiprocessors) {
  const Tensor& weight = product.weight;
  const int ctas = 2 * multiprocessors;
  if (product.starts) {
    // Experts are never equally loaded: a tile of twice the average holds the rows of most.
    const int64_t rows = 2 * product.out.dim(0) / experts_of(product);
    return {.rows = static_cast<int>(rows), .tile = 128, .split = 1, .ctas = ctas};
  }
  const int split = split_of(weight);
  const bool large = ceil_div(weight.dim(0), 128) * split >= kEnoughCtas;
  return {.rows = static_cast<int>(product.out.dim(0)),
          .tile = large ? 128 : 64,
          .split = split,
          .ctas = ctas};
}

void launch_stream(const StreamProduct& product, const StreamPlan& plan, cudaStream_t stream,
                   const char* operation) {
  if (product.weight.dtype == DType::kF8E4M3)
    launch_rows<F8>(product, plan, stream, operation);
  else
    launch_rows<Bf16>(product, plan, stream, operation);
}

}  // namespace loza::cuda
