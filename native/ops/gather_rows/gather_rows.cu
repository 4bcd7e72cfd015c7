// out[i, :] = table[ids[i], :], 16 bytes a thread; of an FP8 latent cache scale * [codes | rope].
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"
#include "ops/latent_cache.h"

namespace loza::cuda {

namespace {

template <class Out, class T>
struct GatherArgs {
  Rows<Out> out;        // [rows, width]
  Rows<const T> table;  // [entries, width]
  const int32_t* ids;   // [rows]
  int64_t rows, width, entries;
};

// A kernel cannot fail the stream: a row whose id is outside the table becomes NaN, which reaches
// the logits and is seen there.
template <int kCount, class Out, class T>
__global__ void __launch_bounds__(256) gather_kernel(GatherArgs<Out, T> args) {
  launch_dependents();
  wait_for_prerequisites();
  const int64_t row = grid_row();
  if (row >= args.rows) return;
  const int32_t id = args.ids[row];
  const bool inside = id >= 0 && id < args.entries;
  const T* from = args.table[inside ? id : 0];
  Out* to = args.out[row];
  for (int64_t i = grid_item() * kCount; i < args.width; i += grid_item_step() * kCount) {
    float values[kCount];
    if (inside) {
      load(values, from + i);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; j++) values[j] = __int_as_float(0x7fc00000);
    }
    store(to + i, values);
  }
}

template <class Out>
struct GatherLatentsArgs {
  Rows<Out> out;  // [rows, latent + rope]
  LatentCache cache;
  const int32_t* ids;  // [rows]
  int64_t rows, slots;
};

template <int kCount, class Out>
__global__ void __launch_bounds__(256) gather_latents_kernel(GatherLatentsArgs<Out> args) {
  launch_dependents();
  wait_for_prerequisites();
  const LatentCache cache = args.cache;
  const int64_t row = grid_row(), latent = cache.latent, width = latent + cache.rope;
  if (row >= args.rows) return;
  const int32_t id = args.ids[row];
  const bool inside = id >= 0 && id < args.slots;
  const int32_t slot = inside ? id : 0;
  const float scale = inside ? *cache.scale(slot) : __int_as_float(0x7fc00000);
  Out* to = args.out[row];
  for (int64_t i = grid_item() * kCount; i < width; i += grid_item_step() * kCount) {
    float values[kCount];
    if (i < latent)
      load(values, cache.codes<const F8E4M3>(slot) + i);
    else
      load(values, cache.ropes<const Bf16>(slot) + i - latent);
#pragma unroll
    for (float& value : values) value *= scale;
    store(to + i, values);
  }
}

void launch_latents(const GatherRowsParams& params, CudaStream& stream) {
  const int64_t latent = params.latent(), rope = params.rope(), rows = params.ids.dim(0);
  const bool vector = latent % kVector == 0 && rope % kVector == 0 && vectorisable(params.out);
  with_float_type(params.out.dtype, [&]<class Out>(Out) {
    with_count(vector, [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const GatherLatentsArgs<Out> args{.out = rows_of<Out>(params.out),
                                        .cache = latent_cache(params.table, latent, rope),
                                        .ids = params.ids.as<const int32_t>(),
                                        .rows = rows,
                                        .slots = params.table.dim(0)};
      const RowGrid grid(rows, (latent + rope) / kCount);
      launch_kernel("gather_rows", gather_latents_kernel<kCount, Out>, grid, stream.handle(), args);
    });
  });
}

}  // namespace

void launch(const GatherRowsParams& params, CudaStream& stream) {
  const auto& [out, table, ids] = params;
  const int64_t rows = ids.dim(0), width = out.dim(1);
  if (rows == 0 || width == 0) return;
  if (is_latent_cache(table)) return launch_latents(params, stream);
  const auto launch_for = [&]<class Out, class T>(Out, T) {
    with_count(vectorisable(out) && vectorisable(table), [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const GatherArgs<Out, T> args{.out = rows_of<Out>(params.out),
                                    .table = rows_of<const T>(params.table),
                                    .ids = params.ids.as<const int32_t>(),
                                    .rows = rows,
                                    .width = width,
                                    .entries = params.table.dim(0)};
      const RowGrid grid(rows, width / kCount);
      launch_kernel("gather_rows", gather_kernel<kCount, Out, T>, grid, stream.handle(), args);
    });
  };
  with_float_type(out.dtype, [&]<class Out>(Out) {
    with_float_type(table.dtype, [&]<class T>(T) { launch_for(Out{}, T{}); });
  });
}

}  // namespace loza::cuda
