// out[t, :] += sum_i weights[t, i] * (place < 0 ? identity[t, :] : y[place, :]), place =
// places[t * top_k + i]: slots in ascending order, in fp32. 8 elements a thread.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int64_t kMaxTopK = kWarpSize;
// Slots that a thread loads at once: for few rows latency counts, for many the room for threads.
constexpr int kSlotsOfFew = 12, kSlotsOfMany = 4;
constexpr int64_t kFewRows = 64;

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
// cannot fail the stream. Lane i of each warp has place and weight i.
template <int kCount, int kSlots, class Act>
__global__ void __launch_bounds__(256) combine_kernel(CombineArgs<Act> args) {
  launch_dependents();
  wait_for_prerequisites();
  const int64_t row = grid_row();
  if (row >= args.rows) return;  // whole warps
  const int top_k = static_cast<int>(args.top_k), lane = threadIdx.x % kWarpSize;
  const int32_t own_place = lane < top_k ? args.places[row * top_k + lane] : 0;
  const float own_weight = lane < top_k ? args.weights[row][lane] : 0.0f;
  const Act* identity = args.identity.data == nullptr ? nullptr : args.identity[row];
  const int64_t warp = grid_item() - lane;
  for (int64_t from = warp * kCount; from < args.width; from += grid_item_step() * kCount) {
    const bool inside = from + lane * kCount < args.width;
    const int64_t at = inside ? from + lane * kCount : 0;
    float sum[kCount] = {};
    for (int first = 0; first < top_k; first += kSlots) {
      float values[kSlots][kCount], factors[kSlots];
#pragma unroll
      for (int i = 0; i < kSlots; i++) {
        const int slot = min(first + i, top_k - 1);
        const int32_t place = __shfl_sync(kFullWarp, own_place, slot);
        const float weight = __shfl_sync(kFullWarp, own_weight, slot);
        const Act* wanted = place < 0 ? identity : place < args.slots ? args.y[place] : nullptr;
        // Loaded whatever it is, so that the loads of several slots are in flight together.
        load(values[i], (wanted == nullptr ? args.y[0] : wanted) + at);
        factors[i] = wanted == nullptr ? __int_as_float(0x7fc00000) : weight;
      }
#pragma unroll
      for (int i = 0; i < kSlots; i++) {
        if (first + i >= top_k) break;
#pragma unroll
        for (int j = 0; j < kCount; j++) sum[j] += factors[i] * values[i][j];
      }
    }
    if (!inside) continue;
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
  loza::check(params.weights.dim(1) <= kMaxTopK, "combine: ", params.weights.dim(1),
              " experts a token are too many on CUDA");
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
      const auto kernel = rows <= kFewRows ? combine_kernel<kCount, kSlotsOfFew, Act>
                                           : combine_kernel<kCount, kSlotsOfMany, Act>;
      launch_kernel("combine", kernel, grid, stream.handle(), args);
    });
  });
}

}  // namespace loza::cuda
