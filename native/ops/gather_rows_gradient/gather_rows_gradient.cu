// dtable[ids[i], :] += dout[i, :]. The block of the first row that names an entry owns the entry: it
// walks the rows from there on and adds those of the same entry, in ascending order. Others end at once.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;

struct GatherRowsGradientArgs {
  Rows<float> dtable;  // [entries, width]
  FloatRows dout;      // [rows, width]
  const int32_t* ids;  // [rows]
  int64_t rows, entries, width;
};

__device__ bool is_named_before(const int32_t* ids, int64_t row) {
  const int32_t id = ids[row];
  for (int64_t first = 0; first < row; first += kThreads) {
    const int64_t other = first + threadIdx.x;
    if (__syncthreads_or(other < row && ids[other] == id)) return true;
  }
  return false;
}

// The rows among first .. first + kThreads that name the entry, ascending; how many.
__device__ int find_rows(int (&found)[kThreads], int (&shared)[kMaxWarps],
                         const GatherRowsGradientArgs& args, int32_t id, int64_t first) {
  const int64_t row = first + threadIdx.x;
  const int match = row < args.rows && args.ids[row] == id ? 1 : 0;
  const Prefix<int> prefix = block_prefix(match, shared);
  if (match) found[prefix.before] = static_cast<int>(threadIdx.x);
  __syncthreads();
  return prefix.total;
}

// Columns a thread sums in registers while it walks (wider rows are walked several times), and rows
// whose loads are in flight together.
constexpr int kHeld = 8, kAhead = 4;
using Held = float[kHeld];

// sums += dout[rows[0]], then dout[rows[1]], ...
template <int kRows>
__device__ __forceinline__ void add_rows(Held& sums, const GatherRowsGradientArgs& args,
                                         int64_t first, const int* rows, int64_t base) {
  float values[kRows][kHeld][1] = {};
#pragma unroll
  for (int i = 0; i < kRows; i++)
#pragma unroll
    for (int j = 0; j < kHeld; j++) {
      const int64_t column = base + j * kThreads + threadIdx.x;
      if (column < args.width) args.dout.load(values[i][j], first + rows[i], column);
    }
#pragma unroll
  for (int i = 0; i < kRows; i++)
#pragma unroll
    for (int j = 0; j < kHeld; j++) sums[j] += values[i][j][0];
}

// Grid: x = rows.
__global__ void __launch_bounds__(kThreads)
    gather_rows_gradient_kernel(GatherRowsGradientArgs args) {
  __shared__ int found[kThreads], shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const int32_t id = args.ids[row];
  if (id < 0 || id >= args.entries || is_named_before(args.ids, row)) return;
  for (int64_t base = 0; base < args.width; base += kHeld * kThreads) {
    Held sums = {};
    for (int64_t first = row; first < args.rows; first += kThreads) {
      const int count = find_rows(found, shared, args, id, first);
      int i = 0;
      for (; i + kAhead <= count; i += kAhead) add_rows<kAhead>(sums, args, first, &found[i], base);
      for (; i < count; i++) add_rows<1>(sums, args, first, &found[i], base);
      __syncthreads();  // `found` is written anew
    }
#pragma unroll
    for (int j = 0; j < kHeld; j++) {
      const int64_t column = base + j * kThreads + threadIdx.x;
      if (column < args.width) args.dtable[id][column] += sums[j];
    }
  }
}

}  // namespace

void launch(const GatherRowsGradientParams& params, CudaStream& stream) {
  const int64_t rows = params.ids.dim(0);
  if (rows == 0 || params.dtable.elements() == 0) return;
  const GatherRowsGradientArgs args{.dtable = rows_of<float>(params.dtable),
                                    .dout = float_rows(params.dout),
                                    .ids = params.ids.as<const int32_t>(),
                                    .rows = rows,
                                    .entries = params.dtable.dim(0),
                                    .width = params.dtable.dim(1)};
  gather_rows_gradient_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream.handle()>>>(args);
  check_launch("gather_rows gradient");
}

}  // namespace loza::cuda
