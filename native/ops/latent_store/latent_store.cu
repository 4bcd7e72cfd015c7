// cache[slots[t], :] = [ scale * weight * kv[t, 0:latent] / rms | rope(kv[t, latent:]) ], one block a
// row. The rotation does not wait for the norm's sum.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "ops/rms_norm/rms_norm.cuh"
#include "ops/rope/rope.cuh"

namespace loza::cuda {

namespace {

template <class Cache, class Act, class Weight>
struct LatentStoreArgs {
  Rows<Cache> cache;        // [cache slots, latent + rope]
  Rows<const Act> kv;       // [rows, latent + rope]
  const Weight* weight;     // [latent]
  Rows<const float> table;  // [rows, rope]
  const int32_t* slots;     // [rows]
  int64_t cache_slots, latent, rope;
  float eps, scale;
};

// Slots outside the cache are passed over like padding: a kernel cannot fail the stream.
template <int kCount, class Cache, class Act, class Weight>
__global__ void __launch_bounds__(256)
    latent_store_kernel(LatentStoreArgs<Cache, Act, Weight> args) {
  constexpr int kRopeCount = kCount == 1 ? 2 : kCount;
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const int32_t slot = args.slots[row];
  if (slot < 0 || slot >= args.cache_slots) return;  // the whole block
  const Act* kv = args.kv[row];
  Cache* entry = args.cache[slot];
  const float* table = args.table[row];
  for (int64_t i = threadIdx.x * kRopeCount; i < args.rope; i += blockDim.x * kRopeCount) {
    float values[kRopeCount], angles[kRopeCount];
    load(values, kv + args.latent + i);
    load(angles, table + i);
    rotate(values, angles);
    store(entry + args.latent + i, values);
  }
  const float factor = rms_factor<kCount>(kv, args.latent, args.eps, args.scale, shared);
  scale_row<kCount>(entry, kv, args.weight, args.latent, factor);
}

template <class Cache, class Act, class Weight>
void launch_typed(const LatentStoreParams& params, CudaStream& stream) {
  const LatentStoreArgs<Cache, Act, Weight> args{.cache = rows_of<Cache>(params.cache),
                                                 .kv = rows_of<const Act>(params.kv),
                                                 .weight = params.weight.as<const Weight>(),
                                                 .table = rows_of<const float>(params.rope_table),
                                                 .slots = params.slots.as<const int32_t>(),
                                                 .cache_slots = params.cache.dim(0),
                                                 .latent = params.weight.dim(0),
                                                 .rope = params.rope_table.dim(1),
                                                 .eps = params.eps,
                                                 .scale = params.scale};
  const bool vector = vectorisable(params.cache) && vectorisable(params.kv) &&
                      vectorisable(params.weight) && vectorisable(params.rope_table);
  with_count(vector, [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    latent_store_kernel<kCount, Cache, Act, Weight>
        <<<static_cast<unsigned>(params.slots.dim(0)), row_threads(args.latent / kCount), 0,
           stream.handle()>>>(args);
  });
}

}  // namespace

void launch(const LatentStoreParams& params, CudaStream& stream) {
  if (params.slots.dim(0) == 0 || params.kv.dim(1) == 0) return;
  with_float_type(params.cache.dtype, [&]<class Cache>(Cache) {
    with_float_type(params.kv.dtype, [&]<class Act>(Act) {
      with_float_type(params.weight.dtype, [&]<class Weight>(Weight) {
        launch_typed<Cache, Act, Weight>(params, stream);
      });
    });
  });
  check_launch("latent_store");
}

}  // namespace loza::cuda
