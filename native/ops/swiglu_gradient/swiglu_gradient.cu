// dgate = dy * up * s * (1 + gate * (1 - s)) and dup = dy * gate * s, s = 1 / (1 + exp(-gate)).
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"

namespace loza::cuda {

namespace {

struct SwigluGradientArgs {
  FloatRows dgate, dup, dy, gate, up;  // [rows, width]
  int64_t rows, width;
};

template <int kCount>
__global__ void __launch_bounds__(256) swiglu_gradient_kernel(SwigluGradientArgs args) {
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  for (int64_t i = grid_item() * kCount; i < args.width; i += grid_item_step() * kCount) {
    float dy[kCount], gate[kCount], up[kCount];
    args.dy.load(dy, row, i);
    args.gate.load(gate, row, i);
    args.up.load(up, row, i);
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      const float s = 1.0f / (1.0f + expf(-gate[j]));
      const float slope = s * (1.0f + gate[j] * (1.0f - s));
      gate[j] = dy[j] * gate[j] * s;
      up[j] = dy[j] * up[j] * slope;
    }
    args.dgate.store(row, i, up);
    args.dup.store(row, i, gate);
  }
}

}  // namespace

void launch(const SwigluGradientParams& params, CudaStream& stream) {
  const int64_t rows = params.dy.dim(0), width = params.dy.dim(1);
  if (rows == 0 || width == 0) return;
  const SwigluGradientArgs args{float_rows(params.dgate),
                                float_rows(params.dup),
                                float_rows(params.dy),
                                float_rows(params.gate),
                                float_rows(params.up),
                                rows,
                                width};
  with_count(all_vectorisable(params.dgate, params.dup, params.dy, params.gate, params.up),
             [&](auto count) {
               constexpr int kCount = decltype(count)::value;
               const RowGrid grid(rows, width / kCount);
               swiglu_gradient_kernel<kCount>
                   <<<grid.blocks, grid.threads, 0, stream.handle()>>>(args);
             });
  check_launch("swiglu gradient");
}

}  // namespace loza::cuda
