// out[t, :] += what the slots of token t have in y, in ascending order.
#include "cuda/cuda_ops.h"
#include "cuda/float_rows.cuh"

namespace loza::cuda {

namespace {

struct SumSlotsArgs {
  FloatRows out;         // [rows, width]
  FloatRows y;           // [slots, width]
  const int32_t* place;  // [slots]
  int64_t rows, width, slots;
  int top_k;
};

// A place outside y makes the row NaN: a kernel cannot fail the stream.
template <int kCount>
__global__ void __launch_bounds__(256) sum_slots_kernel(SumSlotsArgs args) {
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  for (int64_t i = grid_item() * kCount; i < args.width; i += grid_item_step() * kCount) {
    float sum[kCount], value[kCount];
    args.out.load(sum, row, i);
    for (int slot = 0; slot < args.top_k; slot++) {
      const int32_t place = args.place[row * args.top_k + slot];
      if (place < 0) continue;
      if (place < args.slots) args.y.load(value, place, i);
#pragma unroll
      for (int j = 0; j < kCount; j++)
        sum[j] += place < args.slots ? value[j] : __int_as_float(0x7fc00000);
    }
    args.out.store(row, i, sum);
  }
}

}  // namespace

void launch(const SumSlotsParams& params, CudaStream& stream) {
  const int64_t rows = params.out.dim(0), width = params.out.dim(1), slots = params.y.dim(0);
  if (rows == 0 || width == 0) return;
  const SumSlotsArgs args{.out = float_rows(params.out),
                          .y = float_rows(params.y),
                          .place = params.place.as<const int32_t>(),
                          .rows = rows,
                          .width = width,
                          .slots = slots,
                          .top_k = static_cast<int>(slots / rows)};
  with_count(all_vectorisable(params.out, params.y), [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    const RowGrid grid(rows, width / kCount);
    sum_slots_kernel<kCount><<<grid.blocks, grid.threads, 0, stream.handle()>>>(args);
  });
  check_launch("sum_slots");
}

}  // namespace loza::cuda
