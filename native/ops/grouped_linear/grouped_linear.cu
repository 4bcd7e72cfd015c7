// The experts' matrices: rows starts[e] to starts[e + 1] of `out` are W[e] times the rows of x that
// `order` names. The host knows only how many slots there are, so the grid covers what any split
// of them among the experts could need, and each CTA finds its own rows:
//   tiles   expert e owns the row tiles from starts[e] / T + e on, a number that grows by at least
//           the tiles that e needs from one expert to the next: slots / T + experts tiles in all.
//   slots   with fewer slots than that, CTA i works when slot i is the first of a tile of T rows.
// Grid: x = column tiles, y = row tiles. CTAs beside each other share the gathered rows.
#include "ops/grouped_linear/grouped_linear.h"

#include "cuda/barrier.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/launch.h"

namespace loza::cuda {
namespace {

constexpr const char* kName = "grouped_linear";

struct GroupedParams {
  const Bf16* x;          // [rows, k]
  const void* weight;     // [experts, n, k]
  const float* scale;     // f32 [experts, ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  Bf16* out;              // [slots, n]
  const int32_t* starts;  // [experts + 1]
  const int32_t* order;   // [slots], or null
  int64_t x_stride, weight_stride, weight_expert_stride, scale_stride, scale_expert_stride;
  int64_t out_stride;
  int64_t slots;
  int experts, n, k, top_k;
  bool x_aligned, weight_aligned, out_aligned;
  bool tile_a_slot;  // the grid has a row tile a slot
};

// Rows first to first + count of `out`, all of one expert.
struct RowTile {
  int expert, first, count;  // no work: count is 0
};

template <class T>
struct SharedStorage {
  TileStorage<T> tile;
  RowTile rows;
};

// The row of x behind each row of the tile.
struct GatheredRows {
  const int32_t* order;
  int first, top_k;

  __device__ int64_t operator()(int row) const {
    return order ? order[first + row] / top_k : first + row;
  }
};

// Whether, and where, row tile `index` of the grid lies in this expert's rows.
template <class T>
__device__ inline RowTile tile_of(const GroupedParams& params, int expert, int index) {
  const int begin = params.starts[expert], end = params.starts[expert + 1];
  int first = index;
  bool mine = index >= begin && index < end && (index - begin) % T::kRows == 0;
  if (!params.tile_a_slot) {
    const int own = index - (begin / T::kRows + expert);
    first = begin + own * T::kRows;
    mine = own >= 0 && index < end / T::kRows + expert + 1 && first < end;
  }
  return {expert, first, mine ? min(T::kRows, end - first) : 0};
}

// All threads look at some experts; at most one finds the tile. Faster than a binary search, whose
// loads wait for each other.
template <class T>
__device__ inline RowTile find_tile(RowTile& found, const GroupedParams& params, int index) {
  if (threadIdx.x == 0) found = {0, 0, 0};
  __syncthreads();
  for (int expert = static_cast<int>(threadIdx.x); expert < params.experts; expert += T::kThreads) {
    const RowTile tile = tile_of<T>(params, expert, index);
    if (tile.count > 0) found = tile;
  }
  __syncthreads();
  return found;
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kCtas)
    grouped_kernel(const __grid_constant__ GroupedParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<SharedStorage<T>*>(memory);
  launch_dependents();
  wait_for_prerequisites();
  const RowTile rows = find_tile<T>(shared.rows, params, static_cast<int>(blockIdx.y));
  if (rows.count == 0) return;
  const int column = static_cast<int>(blockIdx.x) * T::kColumns;
  const int64_t weight = rows.expert * params.weight_expert_stride + column * params.weight_stride;
  const float* scale = params.scale ? params.scale + rows.expert * params.scale_expert_stride +
                                          column / kScaleBlock * params.scale_stride
                                    : nullptr;
  const TileTask task{.x = params.x,
                      .weight = static_cast<const typename T::Weight*>(params.weight) + weight,
                      .scale = scale,
                      .out = params.out + rows.first * params.out_stride + column,
                      .x_stride = params.x_stride,
                      .weight_stride = params.weight_stride,
                      .out_stride = params.out_stride,
                      .rows = rows.count,
                      .columns = min(T::kColumns, params.n - column),
                      .k = params.k,
                      .x_aligned = params.x_aligned,
                      .weight_aligned = params.weight_aligned,
                      .out_aligned = params.out_aligned,
                      .out_is_f32 = false,
                      .accumulate = false};
  run_tile<T>(shared.tile, task, GatheredRows{params.order, rows.first, params.top_k});
}

template <class T>
void launch_grouped(GroupedParams params, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(SharedStorage<T>);
  const int64_t tiles = params.slots / T::kRows + params.experts;
  params.tile_a_slot = params.slots <= tiles;
  const int64_t columns = (params.n + T::kColumns - 1) / T::kColumns;
  const dim3 grid(static_cast<unsigned>(columns),
                  static_cast<unsigned>(params.tile_a_slot ? params.slots : tiles));
  allow_shared(grouped_kernel<T>, kShared, kName);
  launch_kernel(kName, grouped_kernel<T>, {grid, T::kThreads, kShared}, stream, params);
}

// By the rows an expert has on average. Experts are never equally loaded, so a tile is taken that
// is larger than the average: the weight, not the padding, is what costs while rows are few.
template <class Weight>
void launch_rows(const GroupedParams& params, cudaStream_t stream) {
  using Tile = Tiles<Weight, true>;
  const int64_t average = params.slots / params.experts;
  if (average <= 8)
    launch_grouped<typename Tile::Rows16>(params, stream);
  else if (average <= 20)
    launch_grouped<typename Tile::Rows32>(params, stream);
  else if (average <= 96)
    launch_grouped<typename Tile::Rows64>(params, stream);
  else
    launch_grouped<typename Tile::Rows128>(params, stream);
}

GroupedParams grouped_of(const GroupedLinearParams& params) {
  const Tensor &x = params.x, &weight = params.weight, &scale = params.scale, &out = params.out;
  return {.x = x.as<const Bf16>(),
          .weight = weight.data,
          .scale = scale.as<const float>(),
          .out = out.as<Bf16>(),
          .starts = params.starts.as<const int32_t>(),
          .order = params.order.as<const int32_t>(),
          .x_stride = x.stride(0),
          .weight_stride = weight.stride(1),
          .weight_expert_stride = weight.stride(0),
          .scale_stride = scale ? scale.stride(1) : 0,
          .scale_expert_stride = scale ? scale.stride(0) : 0,
          .out_stride = out.stride(0),
          .slots = out.dim(0),
          .experts = static_cast<int>(weight.dim(0)),
          .n = static_cast<int>(weight.dim(1)),
          .k = static_cast<int>(weight.dim(2)),
          .top_k = params.top_k,
          .x_aligned = rows_aligned(x, 16, 1),
          .weight_aligned = rows_aligned(weight, 16, 2),
          .out_aligned = rows_aligned(out, 2 * size_of(out.dtype), 1),
          .tile_a_slot = false};
}

}  // namespace

void launch(const GroupedLinearParams& params, CudaStream& stream) {
  if (params.out.elements() == 0 || params.weight.dim(0) == 0) return;
  const GroupedParams grouped = grouped_of(params);
  switch (params.weight.dtype) {
    case DType::kBF16:
      return launch_rows<Bf16>(grouped, stream.handle());
    case DType::kF8E4M3:
      return launch_rows<F8>(grouped, stream.handle());
    default:
      return launch_grouped<ExactTile<true>>(grouped, stream.handle());
  }
}

}  // namespace loza::cuda
