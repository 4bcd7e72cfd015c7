// The product of a matrix an expert with bf16 activations: the tiles of gemm_tile.cuh.
// Grid: x = column tiles, y = row tiles. CTAs beside each other share the gathered rows.
#include "cuda/gemm_tile.cuh"
#include "cuda/grouped_rows.cuh"
#include "cuda/product.h"

namespace loza::cuda {
namespace {

struct GroupedParams {
  const Bf16* x;          // [rows, k]
  const void* weight;     // [experts, n, k] or [experts, k, n]
  const float* scale;     // f32 [experts, ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  void* out;              // bf16 | f32 [slots, n]
  const int32_t* starts;  // [experts + 1]
  const int32_t* order;   // [slots], or null
  int64_t x_stride, weight_stride, weight_expert_stride, scale_stride, scale_expert_stride;
  int64_t out_stride;
  int experts, n, k, top_k;
  bool x_aligned, weight_aligned, out_aligned, out_is_f32, accumulate;
};

template <class T>
struct SharedStorage {
  TileStorage<T> tile;
  ExpertRows rows;
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kCtas)
    grouped_kernel(const __grid_constant__ GroupedParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<SharedStorage<T>*>(memory);
  launch_dependents();
  wait_for_prerequisites();
  const ExpertRows rows = find_expert_rows<T::kRows>(shared.rows, params.starts, params.experts,
                                                     static_cast<int>(blockIdx.y));
  if (rows.count == 0) return;
  const int column = static_cast<int>(blockIdx.x) * T::kColumns;
  const int64_t weight = rows.expert * params.weight_expert_stride +
                         (T::kAlongK ? column * params.weight_stride : int64_t{column});
  const float* scale = params.scale ? params.scale + rows.expert * params.scale_expert_stride +
                                          column / kScaleBlock * params.scale_stride
                                    : nullptr;
  const int64_t out = rows.first * params.out_stride + column;
  const TileTask task{.x = params.x,
                      .weight = static_cast<const typename T::Weight*>(params.weight) + weight,
                      .scale = scale,
                      .out = static_cast<char*>(params.out) + out * (params.out_is_f32 ? 4 : 2),
                      .x_stride = params.x_stride,
                      .weight_stride = params.weight_stride,
                      .out_stride = params.out_stride,
                      .rows = rows.count,
                      .columns = min(T::kColumns, params.n - column),
                      .k = params.k,
                      .x_aligned = params.x_aligned,
                      .weight_aligned = params.weight_aligned,
                      .out_aligned = params.out_aligned,
                      .out_is_f32 = params.out_is_f32,
                      .accumulate = params.accumulate};
  run_tile<T>(shared.tile, task, GatheredRows{params.order, rows.first, params.top_k});
}

template <class T>
void launch_grouped(const GroupedParams& params, int64_t slots, cudaStream_t stream,
                    const char* operation) {
  constexpr size_t kShared = sizeof(SharedStorage<T>);
  const dim3 grid(static_cast<unsigned>((params.n + T::kColumns - 1) / T::kColumns),
                  static_cast<unsigned>(expert_tiles(slots, T::kRows, params.experts)));
  allow_shared(grouped_kernel<T>, kShared, operation);
  launch_kernel(operation, grouped_kernel<T>, {grid, T::kThreads, kShared}, stream, params);
}

// By the rows an expert has on average. Experts are never equally loaded, so a tile is taken that
// is larger than the average: the weight, not the padding, is what costs while rows are few.
template <class Tile>
void launch_rows(const GroupedParams& params, int64_t slots, cudaStream_t stream,
                 const char* operation) {
  const int64_t average = slots / params.experts;
  if (average <= 8)
    launch_grouped<typename Tile::Rows16>(params, slots, stream, operation);
  else if (average <= 20)
    launch_grouped<typename Tile::Rows32>(params, slots, stream, operation);
  else if (average <= 96)
    launch_grouped<typename Tile::Rows64>(params, slots, stream, operation);
  else
    launch_grouped<typename Tile::Rows128>(params, slots, stream, operation);
}

GroupedParams grouped_of(const GroupedProduct& product) {
  const Tensor &x = product.x, &weight = product.weight, &out = product.out;
  return {.x = x.as<const Bf16>(),
          .weight = weight.data,
          .scale = product.scale.as<const float>(),
          .out = out.data,
          .starts = product.starts.as<const int32_t>(),
          .order = product.order.as<const int32_t>(),
          .x_stride = x.stride(0),
          .weight_stride = product.weight_stride(),
          .weight_expert_stride = weight.stride(0),
          .scale_stride = product.scale_stride(),
          .scale_expert_stride = product.scale_expert_stride(),
          .out_stride = out.stride(0),
          .experts = static_cast<int>(product.experts()),
          .n = static_cast<int>(product.n()),
          .k = static_cast<int>(product.k()),
          .top_k = product.top_k,
          .x_aligned = rows_aligned(x, 16, 1),
          .weight_aligned = rows_aligned(weight, 16, product.along_n ? 1 : 2),
          .out_aligned = rows_aligned(out, 2 * size_of(out.dtype), 1),
          .out_is_f32 = out.dtype == DType::kF32,
          .accumulate = product.accumulate};
}

}  // namespace

void run_tiles(const GroupedProduct& product, CudaStream& stream, const char* operation) {
  const GroupedParams grouped = grouped_of(product);
  with_tiles(product.weight.dtype, product.along_n, [&]<class Tile>(Tile) {
    launch_rows<Tile>(grouped, product.slots(), stream.handle(), operation);
  });
}

}  // namespace loza::cuda
