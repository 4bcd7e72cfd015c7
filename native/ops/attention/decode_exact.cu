// Absorbed attention in plain fp32 arithmetic over the paged latent cache, f32, bf16 or FP8: a CTA a
// row and head, a block of keys at a time. See exact.cuh. For f32 activations, and for the sizes of an
// FP8 cache that the main kernel does not take.
//
// The device cannot fail a stream: a row whose table or sequence is broken becomes NaN.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "ops/attention/decode_fp8.h"
#include "ops/attention/exact.cuh"
#include "ops/latent_cache.h"

namespace loza::cuda {
namespace exact {
namespace {

// Rows of a cache: cache[slot][i] is something that widens to fp32.
template <class T>
struct DenseCache {
  const T* data;
  int64_t row;
  __device__ const T* operator[](int64_t slot) const { return data + slot * row; }
};

struct QuantisedRow {
  const F8E4M3* codes;
  const Bf16* rope;
  int64_t latent;
  float scale;
  __device__ float operator[](int64_t i) const {
    return scale * (i < latent ? widen(codes[i]) : widen(rope[i - latent]));
  }
};
struct QuantisedCache {
  LatentCache cache;
  __device__ QuantisedRow operator[](int64_t slot) const {
    return {cache.codes<const F8E4M3>(slot), cache.ropes<const Bf16>(slot), cache.latent,
            *cache.scale(slot)};
  }
};

// Strides are in elements; the last dimension of everything is contiguous.
template <class Act, class Cache>
struct DecodeParams {
  Act* out;                     // [rows, heads, latent]
  float* lse;                   // [rows, heads], or null
  const Act* q;                 // [rows, heads, width]
  Cache cache;                  // [slots][width]
  const int32_t* block_table;   // [sequences, entries]
  const int32_t* first_local;   // [sequences]
  const int32_t* query_starts;  // [sequences + 1]
  const int32_t* positions;     // [rows]
  int64_t out_row, out_head, lse_row, lse_head, q_row, q_head, table_row, slots;
  int latent, width, sequences, entries;
  float scale;
  KeyRange range;
};

// The last sequence that starts at or before the row; -1 and `sequences`: none.
template <class Params>
__device__ inline int sequence_of(const Params& params, int row) {
  int begin = 0, end = params.sequences + 1;  // the first start behind the row
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (params.query_starts[middle] <= row)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin - 1;
}

// The cache row of the first key of a block, or -1 where the table names none.
template <class Params>
__device__ inline int64_t slot_of(const Params& params, int sequence, int block, int keys) {
  const int sinks = params.range.sink_blocks;
  const bool sink = block < sinks;
  const int64_t entry = sink ? block : int64_t{block} + sinks - params.first_local[sequence];
  if (entry < (sink ? 0 : sinks) || entry >= params.entries) return -1;
  const int64_t slot = int64_t{params.block_table[sequence * params.table_row + entry]};
  const int64_t first = slot * kBlockTokens;
  return slot >= 0 && first + keys <= params.slots ? first : -1;
}

// Whether every block that the query at `position` sees was found.
template <class Params>
__device__ inline bool attend_blocks(Softmax& softmax, const Storage& shared, const Params& params,
                                     int sequence, int position) {
  const int last = position / kBlockTokens;
  const int first_local = params.range.first_local_block(last);
  for (int block = 0; block <= last; block++) {
    if (block >= params.range.sink_blocks) block = max(block, first_local);
    if (block > last) break;
    const int keys = min(kBlockTokens, position + 1 - block * kBlockTokens);
    const int64_t slot = slot_of(params, sequence, block, keys);
    if (slot < 0) return false;
    attend(
        softmax, shared, keys, params.latent,
        [&](int j) {
          const auto key = params.cache[slot + j];
          return params.scale * warp_sum(dot_part(shared.query, key, params.width));
        },
        [&](int j, int i) { return widen(params.cache[slot + j][i]); });
  }
  return true;
}

// Grid: x = rows, y = heads.
template <class Act, class Cache>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const __grid_constant__ DecodeParams<Act, Cache> params) {
  extern __shared__ float memory[];
  const Storage shared(memory, params.width, params.latent);
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int64_t head = blockIdx.y;
  const Act* q = params.q + row * params.q_row + head * params.q_head;
  for (int i = thread; i < params.width; i += kThreads) shared.query[i] = widen(q[i]);
  for (int i = thread; i < params.latent; i += kThreads) shared.sums[i] = 0;
  __syncthreads();
  const int position = params.positions[row];
  const int sequence = sequence_of(params, row);
  Softmax softmax;
  bool whole = sequence >= 0 && sequence < params.sequences;
  if (position >= 0 && whole) whole = attend_blocks(softmax, shared, params, sequence, position);
  Act* out = params.out + row * params.out_row + head * params.out_head;
  for (int i = thread; i < params.latent; i += kThreads)
    out[i] = narrow<Act>(position < 0 ? 0.0f
                         : whole      ? shared.sums[i] / softmax.total
                                      : not_a_number());
  if (params.lse == nullptr || thread != 0) return;
  params.lse[row * params.lse_row + head * params.lse_head] =
      position < 0 ? negative_infinity()
      : whole      ? softmax.highest + logf(softmax.total)
                   : not_a_number();
}

template <class Act, class Cache>
void launch_decode(const AttentionDecodeParams& params, const Cache& cache, CudaStream& stream) {
  const Tensor &out = params.out, &q = params.q;
  if (out.elements() == 0) return;
  const size_t bytes = Storage::bytes(q.dim(2), out.dim(2));
  loza::check(bytes <= 48 * 1024, "attention_decode: no kernel for ", q.dim(2), " columns");
  const dim3 grid(static_cast<unsigned>(q.dim(0)), static_cast<unsigned>(q.dim(1)));
  const DecodeParams<Act, Cache> decode{.out = out.as<Act>(),
                                        .lse = params.lse ? params.lse.as<float>() : nullptr,
                                        .q = q.as<const Act>(),
                                        .cache = cache,
                                        .block_table = params.block_table.as<const int32_t>(),
                                        .first_local = params.first_local.as<const int32_t>(),
                                        .query_starts = params.query_starts.as<const int32_t>(),
                                        .positions = params.positions.as<const int32_t>(),
                                        .out_row = out.stride(0),
                                        .out_head = out.stride(1),
                                        .lse_row = params.lse ? params.lse.stride(0) : 0,
                                        .lse_head = params.lse ? params.lse.stride(1) : 0,
                                        .q_row = q.stride(0),
                                        .q_head = q.stride(1),
                                        .table_row = params.block_table.stride(0),
                                        .slots = params.cache.dim(0),
                                        .latent = static_cast<int>(out.dim(2)),
                                        .width = static_cast<int>(q.dim(2)),
                                        .sequences = static_cast<int>(params.block_table.dim(0)),
                                        .entries = static_cast<int>(params.block_table.dim(1)),
                                        .scale = params.softmax_scale,
                                        .range = params.range};
  decode_kernel<<<grid, kThreads, bytes, stream.handle()>>>(decode);
  check_launch("attention_decode");
}

QuantisedCache quantised_cache(const AttentionDecodeParams& params) {
  const int64_t latent = params.out.dim(2);
  return {latent_cache(params.cache, latent, params.q.dim(2) - latent)};
}

}  // namespace
}  // namespace exact

void launch_exact(const AttentionDecodeParams& params, CudaStream& stream) {
  const Tensor& cache = params.cache;
  if (is_latent_cache(cache))
    return exact::launch_decode<float>(params, exact::quantised_cache(params), stream);
  with_float_type(cache.dtype, [&]<class T>(T) {
    const exact::DenseCache<T> rows{cache.as<const T>(), cache.stride(0)};
    exact::launch_decode<float>(params, rows, stream);
  });
}

namespace attention {

void launch_quantised_simple(const AttentionDecodeParams& params, CudaStream& stream) {
  exact::launch_decode<Bf16>(params, exact::quantised_cache(params), stream);
}

}  // namespace attention

}  // namespace loza::cuda
