// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)), 8 elements a thread.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

struct SwigluArgs {
  Rows<Bf16> out;         // [rows, width]; may be `gate` or `up`
  Rows<const Bf16> gate;  // [rows, width]
  Rows<const Bf16> up;    // [rows, width]
  int64_t rows, width;
};

// The fast forms err by a few 1e-7, a thousandth of what rounding to bf16 costs. Where exp(-x) is
// infinite the quotient is -0, as it should be.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

template <int kCount>
__global__ void __launch_bounds__(256) swiglu_kernel(SwigluArgs args) {
  start_next();
  wait_for_inputs();
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  for (int64_t i = grid_item() * kCount; i < args.width; i += grid_item_step() * kCount) {
    float gate[kCount], up[kCount];
    load(gate, args.gate[row] + i);
    load(up, args.up[row] + i);
#pragma unroll
    for (int j = 0; j < kCount; j++) gate[j] = silu(gate[j]) * up[j];
    store(args.out[row] + i, gate);
  }
}

}  // namespace

void launch(const SwigluParams& params, CudaStream& stream) {
  const int64_t rows = params.gate.dim(0), width = params.gate.dim(1);
  if (rows == 0 || width == 0) return;
  const SwigluArgs args{.out = rows_of<Bf16>(params.out),
                        .gate = rows_of<const Bf16>(params.gate),
                        .up = rows_of<const Bf16>(params.up),
                        .rows = rows,
                        .width = width};
  const bool vector =
      vectorisable(params.out) && vectorisable(params.gate) && vectorisable(params.up);
  with_count(vector, [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    const RowGrid grid(rows, width / kCount);
    launch_kernel("swiglu", swiglu_kernel<kCount>, grid, stream.handle(), args);
  });
}

}  // namespace loza::cuda
