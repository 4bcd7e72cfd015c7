// The experts' matrices: rows starts[e] to starts[e + 1] of `out` are W[e] times the rows of x that
// `order` names. Few rows an expert: few_rows.h. Many: gemm_wgmma.h, for which the rows are first put
// in order (bf16) or quantised in order (f8e4m3), a part of them at a time. f32 weights, and what bulk
// copies cannot read: tiles; with f32 activations those of fp32 arithmetic (product.h).
#include "ops/grouped_linear/grouped_linear.h"

#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/few_rows.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/gemm_wgmma.h"
#include "cuda/product.h"
#include "cuda/quantise.h"
#include "cuda/types.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "grouped_linear";

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
WgmmaProduct wgmma_of(const GroupedLinearParams& params) {
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
  WgmmaProduct product = wgmma_of(params);
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
         params.x.stride(0) >= params.x.dim(1) && wgmma_can(wgmma_of(params));
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
  run_tiles(product_of(params), stream, kName);
}

void launch_exact(const GroupedLinearParams& params, CudaStream& stream) {
  if (params.out.elements() == 0 || params.weight.dim(0) == 0) return;
  run_exact(product_of(params), stream, kName);
}

}  // namespace loza::cuda
