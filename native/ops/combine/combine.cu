// out[t, :] += sum_i weights[t, i] * (place < 0 ? identity[t, :] : y[place, :]), place =
// places[t * top_k + i]: slots in ascending order, in fp32. 8 elements a thread.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

template <class Act>
struct CombineArgs {
  Rows<float> out;            // [rows, width]
  Rows<const Act> y;          // [slots, width]
  const int32_t* places;      // [slots]
  Rows<const float> weights;  // [rows, top_k]
  Rows<const Act> identity;   // [rows, width], or null
  int64_t rows, width, slots, top_k;
};

// A place that cannot be (outside y, or a zero expert without identity) makes the row NaN: a kernel
// cannot fail the stream.
template <int kCount, class Act>
__global__ void __launch_bounds__(256) combine_kernel(CombineArgs<Act> args) {
  launch_dependents();
  wait_for_prerequisites();
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  const int32_t* places = args.places + row * args.top_k;
  const float* weights = args.weights[row];
  const Act* identity = args.identity.data == nullptr ? nullptr : args.identity[row];
  for (int64_t at = grid_item() * kCount; at < args.width; at += grid_item_step() * kCount) {
    float sum[kCount] = {};
#pragma unroll 4
    for (int64_t i = 0; i < args.top_k; i++) {
      const int32_t place = places[i];
      const Act* wanted = place < 0 ? identity : place < args.slots ? args.y[place] : nullptr;
      // Loaded whatever it is, so that the loads of several slots are in flight together.
      const Act* source = wanted == nullptr ? args.y[0] : wanted;
      const float weight = wanted == nullptr ? __int_as_float(0x7fc00000) : weights[i];
      float values[kCount];
      load(values, source + at);
#pragma unroll
      for (int j = 0; j < kCount; j++) sum[j] += weight * values[j];
    }
    float out[kCount];
    load(out, args.out[row] + at);
#pragma unroll
    for (int j = 0; j < kCount; j++) out[j] += sum[j];
    store(args.out[row] + at, out);
  }
}

}  // namespace

void launch(const CombineParams& params, CudaStream& stream) {
  const int64_t rows = params.weights.dim(0), width = params.out.dim(1);
  if (rows == 0 || width == 0) return;
  const bool vector = vectorisable(params.out) && vectorisable(params.y) &&
                      (!params.identity || vectorisable(params.identity));
  with_float_type(params.y.dtype, [&]<class Act>(Act) {
    const CombineArgs<Act> args{.out = rows_of<float>(params.out),
                                .y = rows_of<const Act>(params.y),
                                .places = params.place.as<const int32_t>(),
                                .weights = rows_of<const float>(params.weights),
                                .identity = rows_of<const Act>(params.identity),
                                .rows = rows,
                                .width = width,
                                .slots = params.y.dim(0),
                                .top_k = params.weights.dim(1)};
    with_count(vector, [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const RowGrid grid(rows, width / kCount);
      launch_kernel("combine", combine_kernel<kCount, Act>, grid, stream.handle(), args);
    });
  });
}

}  // namespace loza::cuda
