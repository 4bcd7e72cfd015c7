// RopeTable: table[t, 2p] = scale * cos(a), table[t, 2p + 1] = scale * sin(a), a thread a pair.
// Rope: every head of row t turns by row t of the table; a thread takes 4 pairs.
#include "ops/rope/rope.cuh"

#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

struct RopeTableArgs {
  Rows<float> table;              // [rows, 2 * pairs]
  const int32_t* positions;       // [rows]
  Rows<const float> frequencies;  // [2, pairs]: the value's fp32, and what it lacks
  int64_t rows, pairs;
  float scale;
  bool exact;
};

__global__ void __launch_bounds__(256) rope_table_kernel(RopeTableArgs args) {
  launch_dependents();
  wait_for_prerequisites();
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  const int32_t position = args.positions[row];
  float* out = args.table[row];
  for (int64_t p = grid_item(); p < args.pairs; p += grid_item_step()) {
    const float high = args.frequencies[0][p], low = args.frequencies[1][p];
    const double exact = position * (static_cast<double>(high) + low);
    const float rounded = __fmul_rn(static_cast<float>(position), high);
    double sine, cosine;
    sincos(args.exact ? exact : rounded, &sine, &cosine);
    out[2 * p] = static_cast<float>(args.scale * cosine);
    out[2 * p + 1] = static_cast<float>(args.scale * sine);
  }
}

template <class Act>
struct RopeArgs {
  Act* out;      // [rows, heads, dim]; may be `x`
  const Act* x;  // [rows, heads, dim]
  int64_t out_stride, out_head_stride, x_stride, x_head_stride;
  Rows<const float> table;  // [rows, dim]
  int64_t rows, heads, dim;
};

template <int kCount, class Act>
__global__ void __launch_bounds__(256) rope_kernel(RopeArgs<Act> args) {
  launch_dependents();
  wait_for_prerequisites();
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  const float* table = args.table[row];
  const auto per_head = static_cast<unsigned>(args.dim / kCount);
  const int64_t items = args.heads * per_head;
  for (int64_t item = grid_item(); item < items; item += grid_item_step()) {
    const unsigned head = static_cast<unsigned>(item) / per_head;
    const unsigned column = (static_cast<unsigned>(item) - head * per_head) * kCount;
    float values[kCount], angles[kCount];
    load(values, args.x + row * args.x_stride + head * args.x_head_stride + column);
    load(angles, table + column);
    rotate(values, angles);
    store(args.out + row * args.out_stride + head * args.out_head_stride + column, values);
  }
}

}  // namespace

void launch(const RopeTableParams& params, CudaStream& stream) {
  const int64_t rows = params.positions.dim(0), pairs = params.inverse_frequencies.dim(1);
  if (rows == 0 || pairs == 0) return;
  const RopeTableArgs args{.table = rows_of<float>(params.table),
                           .positions = params.positions.as<const int32_t>(),
                           .frequencies = rows_of<const float>(params.inverse_frequencies),
                           .rows = rows,
                           .pairs = pairs,
                           .scale = params.attention_scale,
                           .exact = params.exact_angles};
  const RowGrid grid(rows, pairs);
  launch_kernel("rope_table", rope_table_kernel, grid, stream.handle(), args);
}

void launch(const RopeParams& params, CudaStream& stream) {
  const Tensor &x = params.x, &out = params.out;
  const int64_t rows = x.dim(0), heads = x.dim(1), dim = x.dim(2);
  if (rows == 0 || heads == 0 || dim == 0) return;
  loza::check(heads * dim <= INT32_MAX, "rope: a row of ", heads, " x ", dim, " is too wide");
  const bool vector = vectorisable(x) && vectorisable(out) && vectorisable(params.table);
  with_float_type(x.dtype, [&]<class Act>(Act) {
    const RopeArgs<Act> args{.out = out.as<Act>(),
                             .x = x.as<const Act>(),
                             .out_stride = out.stride(0),
                             .out_head_stride = out.stride(1),
                             .x_stride = x.stride(0),
                             .x_head_stride = x.stride(1),
                             .table = rows_of<const float>(params.table),
                             .rows = rows,
                             .heads = heads,
                             .dim = dim};
    with_count<2>(vector, [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const RowGrid grid(rows, heads * dim / kCount);
      launch_kernel("rope", rope_kernel<kCount, Act>, grid, stream.handle(), args);
    });
  });
}

}  // namespace loza::cuda
