// out = a * x + b * y.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"

namespace loza::cuda {

namespace {

struct BlendArgs {
  FloatRows out, x, y;  // [rows, width]
  int64_t rows, width;
  float a, b;
};

template <int kCount>
__global__ void __launch_bounds__(256) blend_kernel(BlendArgs args) {
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  for (int64_t i = grid_item() * kCount; i < args.width; i += grid_item_step() * kCount) {
    float x[kCount], y[kCount] = {};
    args.x.load(x, row, i);
    if (args.b != 0) args.y.load(y, row, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) x[j] = args.a * x[j] + args.b * y[j];
    args.out.store(row, i, x);
  }
}

}  // namespace

void launch(const BlendParams& params, CudaStream& stream) {
  const int64_t width = params.out.dim(-1), rows = params.out.rank == 2 ? params.out.dim(0) : 1;
  if (rows == 0 || width == 0) return;
  const BlendArgs args{float_rows(params.out),
                       float_rows(params.x),
                       float_rows(params.y),
                       rows,
                       width,
                       params.a,
                       params.b};
  with_count(all_vectorisable(params.out, params.x, params.y), [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    const RowGrid grid(rows, width / kCount);
    blend_kernel<kCount><<<grid.blocks, grid.threads, 0, stream.handle()>>>(args);
  });
  check_launch("blend");
}

}  // namespace loza::cuda
