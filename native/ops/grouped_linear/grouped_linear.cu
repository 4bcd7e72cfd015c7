// The experts' matrices: rows starts[e] to starts[e + 1] of `out` are W[e] times the rows of x that
// `order` names. Few rows an expert: few_rows.h. Many: gemm_wgmma.h, for which the rows are first put
// in order (bf16) or quantised in order (f8e4m3), a part of them at a time. f32 weights, and what bulk
// copies cannot read: the tiles of gemm_tile.cuh. There the host knows only how many slots there
// are, so the grid covers what any split of them among the experts could need, and each CTA finds
// its own rows:
//   tiles   expert e owns the row tiles from starts[e] / T + e on, a number that grows by at least
//           the tiles that e needs from one expert to the next: slots / T + experts tiles in all.
//   slots   with fewer slots than that, CTA i works when slot i is the first of a tile of T rows.
// Grid: x = column tiles, y = row tiles. CTAs beside each other share the gathered rows.
#include "ops/grouped_linear/grouped_linear.h"

#include <algorithm>

#include "cuda/barrier.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/few_rows.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/gemm_wgmma.h"
#include "cuda/launch.h"
#include "cuda/quantise.h"
#include "cuda/types.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "grouped_linear";

// ---- few rows an expert ------------------------------------------------------------------------

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

// ---- many rows an expert -----------------------------------------------------------------------

// Row i of `out` is x[order[i] / top_k], 16 bytes a thread.
struct OrderParams {
  Rows<uint4> out;        // [rows, vectors]
  Rows<const uint4> x;    // [.., vectors]
  const int32_t* order;   // i32 [rows]
  const int32_t* in_use;  // i32 [1]: rows first + i from here on are skipped
  int64_t first, rows, vectors;
  int top_k;
};

__global__ void __launch_bounds__(256) order_kernel(const __grid_constant__ OrderParams params) {
  const int64_t row = grid_row();
  if (row >= min(params.rows, *params.in_use - params.first)) return;
  const uint4* from = params.x[params.order[row] / params.top_k];
  uint4* to = params.out[row];
  for (int64_t i = grid_item(); i < params.vectors; i += grid_item_step()) to[i] = __ldg(from + i);
}

// What the product reads, and where the scratch memory of one part begins.
constexpr size_t kCounterBytes = 256;

void order_rows(WgmmaProduct& product, const GroupedLinearParams& params, std::byte* scratch,
                cudaStream_t stream) {
  const int64_t vectors = product.k / kVector;
  const OrderParams order{.out = {reinterpret_cast<uint4*>(scratch), vectors},
                          .x = {params.x.as<const uint4>(), params.x.stride(0) / kVector},
                          .order = params.order.as<const int32_t>() + product.first,
                          .in_use = product.starts + product.experts,
                          .first = product.first,
                          .rows = product.rows,
                          .vectors = vectors,
                          .top_k = params.top_k};
  const RowGrid grid(product.rows, vectors);
  order_kernel<<<grid.blocks, grid.threads, 0, stream>>>(order);
  check_launch(kName);
  product.x = scratch;
  product.x_stride = product.k;
}

void quantise_rows(WgmmaProduct& product, const GroupedLinearParams& params, std::byte* scratch,
                   cudaStream_t stream) {
  const QuantisedRows layout = quantised_rows(product.rows, product.k);
  auto* scale = reinterpret_cast<float*>(scratch + layout.scale_offset);
  const Bf16* x = params.x.as<const Bf16>();
  launch_quantise({.x = params.order ? x : x + product.first * params.x.stride(0),
                   .order = params.order ? params.order.as<int32_t>() + product.first : nullptr,
                   .rows_in_use = product.starts + product.experts,
                   .out = scratch,
                   .scale = scale,
                   .x_stride = params.x.stride(0),
                   .rows = product.rows,
                   .k = product.k,
                   .scale_stride = layout.scale_stride,
                   .first = product.first,
                   .top_k = params.top_k},
                  stream, kName);
  product.x = scratch;
  product.x_stride = product.k;
  product.x_scale = scale;
  product.x_scale_stride = layout.scale_stride;
}

// All slots in one piece. x is that of the params; copied in order or quantised, it will be
// contiguous.
WgmmaProduct product_of(const GroupedLinearParams& params) {
  const Tensor &x = params.x, &weight = params.weight, &scale = params.scale, &out = params.out;
  return {
      .type = weight.dtype,
      .out = out.data,
      .x = x.data,
      .weight = weight.data,
      .weight_scale = scale.as<const float>(),
      .starts = params.starts.as<const int32_t>(),
      .out_stride = out.stride(0),
      .x_stride = (params.order || weight.dtype == DType::kF8E4M3) ? weight.dim(2) : x.stride(0),
      .weight_stride = weight.stride(1),
      .weight_expert_stride = weight.stride(0),
      .weight_scale_stride = scale ? scale.stride(1) : 0,
      .weight_scale_expert_stride = scale ? scale.stride(0) : 0,
      .rows = out.dim(0),
      .n = weight.dim(1),
      .k = weight.dim(2),
      .experts = weight.dim(0)};
}

// Rows of x that are copied or quantised at a time.
constexpr int64_t kPartBytes = int64_t{512} << 20;
constexpr int64_t kPartRows = 4096;  // a multiple of what tiles and vectors want

void run_parts(const GroupedLinearParams& params, CudaStream& stream) {
  WgmmaProduct product = product_of(params);
  const bool quantised = product.type == DType::kF8E4M3;
  const int64_t slots = product.rows, row_bytes = product.k * size_of(product.type);
  const bool copied = quantised || params.order;
  const int64_t part =
      copied ? std::min(slots, ceil_div(kPartBytes / row_bytes, kPartRows) * kPartRows) : slots;
  const size_t bytes = quantised ? quantised_rows(part, product.k).bytes
                                 : static_cast<size_t>(copied ? part * row_bytes : 0);
  std::byte* scratch = stream.scratch(kCounterBytes + bytes);
  product.counter = reinterpret_cast<int32_t*>(scratch);
  for (int64_t first = 0; first < slots; first += part) {
    product.first = first;
    product.rows = std::min(part, slots - first);
    product.out = params.out.as<Bf16>() + first * product.out_stride;
    if (quantised)
      quantise_rows(product, params, scratch + kCounterBytes, stream.handle());
    else if (copied)
      order_rows(product, params, scratch + kCounterBytes, stream.handle());
    launch_wgmma(product, stream.multiprocessors(), stream.handle(), kName);
  }
}

// From so many rows an expert on, on average.
constexpr int64_t kManyRows = 64;

bool has_many_rows(const GroupedLinearParams& params) {
  return params.weight.dtype != DType::kF32 &&
         params.out.dim(0) >= kManyRows * params.weight.dim(0) && rows_aligned(params.x, 16, 1) &&
         params.weight.dim(2) % (16 / size_of(params.weight.dtype)) == 0 &&
         params.x.stride(0) >= params.x.dim(1) && wgmma_can(product_of(params));
}

bool run_few_rows(const GroupedLinearParams& params, CudaStream& stream) {
  return multiply_few_rows({.out = params.out,
                            .x = params.x,
                            .weight = params.weight,
                            .weight_scale = params.scale,
                            .starts = params.starts,
                            .order = params.order,
                            .top_k = params.top_k},
                           stream, kName);
}

}  // namespace

void launch(const GroupedLinearParams& params, CudaStream& stream) {
  if (params.out.elements() == 0 || params.weight.dim(0) == 0) return;
  if (has_many_rows(params)) return run_parts(params, stream);
  if (run_few_rows(params, stream)) return;
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
