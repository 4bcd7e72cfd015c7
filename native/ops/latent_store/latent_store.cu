// cache[slots[t], :] = [ scale * weight * kv[t, 0:latent] / rms | rope(kv[t, latent:]) ] and
// query[t, :] = query_scale * query_weight * query[t, :] / rms, each by a block of its own. Of an FP8
// latent cache the latent's row is made in shared memory first: its scale is that of all of it.
// Grid: x = rows, y = cache row, then query.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "ops/latent_cache.h"
#include "ops/rms_norm/rms_norm.cuh"
#include "ops/rope/rope.cuh"

namespace loza::cuda {

namespace {

constexpr int kMaxThreads = 256;
constexpr int kMinBlocks = 5;  // few registers: rows are short, and many must be in flight

template <class Cache, class Act, class Weight>
struct LatentStoreArgs {
  Rows<Cache> cache;           // [cache slots, latent + rope]
  Rows<const Act> kv;          // [rows, latent + rope]
  const Weight* weight;        // [latent]
  Rows<const float> table;     // [rows, rope]
  const int32_t* slots;        // [rows]
  Rows<Act> query;             // [rows, query rank], or null
  const Weight* query_weight;  // [query rank]
  int64_t cache_slots, latent, rope, query_rank;
  float eps, scale, query_scale;
};

// The last threads rotate: in a row narrower than the block, those have nothing to normalise.
template <int kCount, class Cache, class Act>
__device__ __forceinline__ void rotate_row(Cache* out, const Act* x, const float* table,
                                           int64_t width, float factor = 1) {
  const int64_t first = (blockDim.x - 1 - threadIdx.x) * kCount;
  for (int64_t i = first; i < width; i += blockDim.x * kCount) {
    float values[kCount], angles[kCount];
    load(values, x + i);
    load(angles, table + i);
    rotate(values, angles);
#pragma unroll
    for (float& value : values) value *= factor;
    store(out + i, values);
  }
}

// Codes and scale of a row that this block's threads made; gives the scale. Magnitudes are compared by
// their bits, as which NaN is the largest.
template <int kCount>
__device__ __forceinline__ float quantise_row(const LatentCache& cache, int32_t slot,
                                              const float* row) {
  __shared__ uint32_t exchange[kMaxWarps];
  const int64_t first = threadIdx.x * kCount, step = blockDim.x * kCount;
  float values[kCount];
  uint32_t largest = 0;
  __syncthreads();
  for (int64_t i = first; i < cache.latent; i += step) {
    load(values, row + i);
#pragma unroll
    for (float value : values) largest = max(largest, __float_as_uint(fabsf(value)));
  }
  const float scale = latent_scale(__uint_as_float(block_max(largest, exchange)));
  const float inverse = 1 / scale;
  for (int64_t i = first; i < cache.latent; i += step) {
    load(values, row + i);
#pragma unroll
    for (float& value : values) value *= inverse;
    store(cache.codes<F8E4M3>(slot) + i, values);
  }
  if (threadIdx.x == 0) *cache.scale(slot) = scale;
  return scale;
}

// Slots outside the cache are passed over like padding: a kernel cannot fail the stream.
template <int kCount, class Cache, class Act, class Weight>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    latent_store_kernel(LatentStoreArgs<Cache, Act, Weight> args) {
  __shared__ float shared[kMaxWarps];
  const bool is_query = blockIdx.y == 1;
  launch_dependents();
  const RowNorm<kCount, Weight> norm(is_query ? args.query_weight : args.weight,
                                     is_query ? args.query_rank : args.latent);
  wait_for_prerequisites();
  const int64_t row = blockIdx.x;
  if (is_query) return norm(args.query[row], args.query[row], args.eps, args.query_scale, shared);
  const int32_t slot = args.slots[row];
  if (slot < 0 || slot >= args.cache_slots) return;  // the whole block
  constexpr int kPairs = kCount == 1 ? 2 : kCount;
  const Act* kv = args.kv[row];
  if constexpr (std::is_same_v<Cache, F8E4M3>) {
    extern __shared__ float normalised[];
    const LatentCache cache{reinterpret_cast<char*>(args.cache.data), args.latent, args.rope};
    norm(normalised, kv, args.eps, args.scale, shared);
    const float scale = quantise_row<kCount>(cache, slot, normalised);
    rotate_row<kPairs>(cache.ropes<Bf16>(slot), kv + args.latent, args.table[row], args.rope,
                       1 / scale);
  } else {
    Cache* entry = args.cache[slot];
    rotate_row<kPairs>(entry + args.latent, kv + args.latent, args.table[row], args.rope);
    norm(entry, kv, args.eps, args.scale, shared);
  }
}

template <class Cache, class Act, class Weight>
void launch_typed(const LatentStoreParams& params, CudaStream& stream) {
  const auto& [cache, kv, weight, table, slots, eps, scale, query, query_weight, query_scale] =
      params;
  const LatentStoreArgs<Cache, Act, Weight> args{.cache = rows_of<Cache>(cache),
                                                 .kv = rows_of<const Act>(kv),
                                                 .weight = weight.as<const Weight>(),
                                                 .table = rows_of<const float>(table),
                                                 .slots = slots.as<const int32_t>(),
                                                 .query = rows_of<Act>(query),
                                                 .query_weight = query_weight.as<const Weight>(),
                                                 .cache_slots = cache.dim(0),
                                                 .latent = weight.dim(0),
                                                 .rope = table.dim(1),
                                                 .query_rank = query ? query.dim(1) : 0,
                                                 .eps = eps,
                                                 .scale = scale,
                                                 .query_scale = query_scale};
  // The planes of a latent cache are aligned where weight and table are.
  const bool vector = (is_latent_cache(cache) || vectorisable(cache)) && vectorisable(kv) &&
                      vectorisable(weight) && vectorisable(table) &&
                      (!query || (vectorisable(query) && vectorisable(query_weight)));
  const size_t shared_bytes = is_latent_cache(cache) ? weight.dim(0) * sizeof(float) : 0;
  loza::check(shared_bytes <= 32 * 1024, "latent_store: no kernel for ", weight.dim(0), " columns");
  const dim3 blocks(static_cast<unsigned>(slots.dim(0)), query ? 2 : 1);
  with_count(vector, [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    const int64_t width = std::max(args.latent, args.query_rank);
    launch_kernel("latent_store", latent_store_kernel<kCount, Cache, Act, Weight>,
                  {blocks, norm_threads(width / kCount, kMaxThreads), shared_bytes},
                  stream.handle(), args);
  });
}

}  // namespace

void launch(const LatentStoreParams& params, CudaStream& stream) {
  if (params.slots.dim(0) == 0) return;
  with_weight_type(params.cache.dtype, [&]<class Cache>(Cache) {
    with_float_type(params.kv.dtype, [&]<class Act>(Act) {
      with_float_type(params.weight.dtype, [&]<class Weight>(Weight) {
        launch_typed<Cache, Act, Weight>(params, stream);
      });
    });
  });
}

}  // namespace loza::cuda
