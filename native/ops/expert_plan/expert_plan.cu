// Sorts slots by expert, stably: a counting sort over chunks of 1,024 slots.
//   count    a block a chunk: counts[chunk][e] = slots of expert e in the chunk
//   scatter  a block a chunk: adds up the counts of all chunks, and of those before it, and places its
//            slots; the first block writes starts
// Few slots (any decode step) take one block and one launch for all of it.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int kChunk = kThreads;  // a slot a thread
constexpr int64_t kOneBlockSlots = 8 * kChunk;
constexpr int64_t kMaxExperts = 4096;  // 40 bytes of shared memory each
constexpr size_t kDefaultShared = 48 * 1024;

struct PlanArgs {
  int32_t* order;           // [slots]
  int32_t* place;           // [slots]
  int32_t* starts;          // [experts + 1]
  Rows<const int32_t> ids;  // [rows, top_k]
  int32_t slots, top_k, experts;
  int32_t* counts;  // [chunks, experts], in scratch
  int32_t chunks;

  // The expert of a slot, -1 for zero experts. Negative ids, which no router makes, count as zero
  // experts too: a kernel cannot fail the stream.
  __device__ __forceinline__ int32_t expert_of(int32_t slot) const {
    if (slot >= slots) return -1;
    const int32_t row = slot / top_k;
    const int32_t id = ids[row][slot - row * top_k];
    return id < experts ? max(id, -1) : -1;
  }
};

// Integer additions: their order does not matter.
__device__ __forceinline__ void count_chunk(const PlanArgs& args, int chunk, int32_t* counts) {
  const int32_t expert = args.expert_of(chunk * kChunk + threadIdx.x);
  if (expert >= 0) atomicAdd(&counts[expert], 1);
}

// Which warps of a chunk have slots of an expert, and how many.
struct ChunkShared {
  uint32_t* warps;  // [experts], a bit a warp
  int32_t* next;    // [experts]: the place of the expert's first slot that is still to come
  uint8_t* counts;  // [warps, experts], undefined where a warp has none

  __device__ ChunkShared(int32_t* memory, int32_t experts)
      : warps(reinterpret_cast<uint32_t*>(memory)),
        next(memory + experts),
        counts(reinterpret_cast<uint8_t*>(memory + 2 * experts)) {}
  static constexpr size_t bytes(int64_t experts) {
    return static_cast<size_t>(experts) * (2 * sizeof(int32_t) + kChunk / kWarpSize);
  }
};

// Places the slots of a chunk, and leaves `next` behind them.
__device__ void scatter_chunk(const PlanArgs& args, int chunk, const ChunkShared& shared) {
  const int32_t slot = chunk * kChunk + threadIdx.x;
  const int32_t expert = args.expert_of(slot);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) shared.warps[e] = 0;
  __syncthreads();
  const unsigned peers = __match_any_sync(kFullWarp, expert);
  const int rank = __popc(peers & ((1u << lane) - 1));
  if (expert >= 0 && rank == 0) {
    atomicOr(&shared.warps[expert], 1u << warp);
    shared.counts[warp * args.experts + expert] = static_cast<uint8_t>(__popc(peers));
  }
  __syncthreads();
  int32_t place = -1;
  bool last = false;
  if (expert >= 0) {
    const uint32_t warps = shared.warps[expert];
    place = shared.next[expert] + rank;
    for (uint32_t lower = warps & ((1u << warp) - 1); lower != 0; lower &= lower - 1)
      place += shared.counts[(__ffs(lower) - 1) * args.experts + expert];
    last = warps >> warp == 1 && rank + 1 == __popc(peers);
  }
  __syncthreads();
  if (last) shared.next[expert] = place + 1;
  if (slot >= args.slots) return;
  args.place[slot] = place;
  if (place >= 0) args.order[place] = slot;
}

// use(e, sum of count over the experts below e) for each, and the total.
template <class Count, class Use>
__device__ int32_t scan_experts(const PlanArgs& args, const Count& count, const Use& use) {
  __shared__ int32_t sums[kMaxWarps];
  int32_t base = 0;
  for (int32_t tile = 0; tile < args.experts; tile += kThreads) {
    const int32_t expert = tile + static_cast<int32_t>(threadIdx.x);
    const bool valid = expert < args.experts;
    const auto [before, total] = block_prefix<int32_t>(valid ? count(expert) : 0, sums);
    if (valid) use(expert, base + before);
    base += total;
  }
  return base;
}

__global__ void __launch_bounds__(kThreads) plan_kernel(PlanArgs args) {
  extern __shared__ int32_t memory[];
  const ChunkShared shared(memory, args.experts);
  launch_dependents();
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) shared.next[e] = 0;
  wait_for_prerequisites();
  __syncthreads();
  for (int chunk = 0; chunk < args.chunks; chunk++) count_chunk(args, chunk, shared.next);
  __syncthreads();
  const auto count = [&](int32_t e) { return shared.next[e]; };
  const int32_t total = scan_experts(
      args, count, [&](int32_t e, int32_t start) { args.starts[e] = shared.next[e] = start; });
  if (threadIdx.x == 0) args.starts[args.experts] = total;
  for (int chunk = 0; chunk < args.chunks; chunk++) scatter_chunk(args, chunk, shared);
}

__global__ void __launch_bounds__(kThreads) count_kernel(PlanArgs args) {
  extern __shared__ int32_t counts[];  // [experts]
  launch_dependents();
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) counts[e] = 0;
  wait_for_prerequisites();
  __syncthreads();
  count_chunk(args, blockIdx.x, counts);
  __syncthreads();
  int32_t* out = args.counts + static_cast<int64_t>(blockIdx.x) * args.experts;
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) out[e] = counts[e];
}

__global__ void __launch_bounds__(kThreads) scatter_kernel(PlanArgs args) {
  extern __shared__ int32_t memory[];
  const ChunkShared shared(memory, args.experts);
  const int own = static_cast<int>(blockIdx.x);
  launch_dependents();
  wait_for_prerequisites();
  const auto count = [&](int32_t expert) {
    int32_t before = 0, sum = 0;
#pragma unroll 16
    for (int chunk = 0; chunk < args.chunks; chunk++) {
      const int32_t slots = args.counts[static_cast<int64_t>(chunk) * args.experts + expert];
      before += chunk < own ? slots : 0;
      sum += slots;
    }
    shared.next[expert] = before;
    return sum;
  };
  const int32_t total = scan_experts(args, count, [&](int32_t e, int32_t start) {
    shared.next[e] += start;
    if (own == 0) args.starts[e] = start;
  });
  if (own == 0 && threadIdx.x == 0) args.starts[args.experts] = total;
  scatter_chunk(args, own, shared);
}

}  // namespace

void launch(const ExpertPlanParams& params, CudaStream& stream) {
  const int64_t top_k = params.ids.dim(1), slots = params.ids.dim(0) * top_k;
  const int64_t experts = params.starts.dim(0) - 1, chunks = ceil_div(slots, kChunk);
  loza::check(experts <= kMaxExperts && slots <= INT32_MAX - kChunk, "expert_plan: cannot sort ",
              slots, " slots by ", experts, " experts on CUDA");
  PlanArgs args{.order = params.order.as<int32_t>(),
                .place = params.place.as<int32_t>(),
                .starts = params.starts.as<int32_t>(),
                .ids = rows_of<const int32_t>(params.ids),
                .slots = static_cast<int32_t>(slots),
                .top_k = static_cast<int32_t>(top_k),
                .experts = static_cast<int32_t>(experts),
                .counts = nullptr,
                .chunks = static_cast<int32_t>(chunks)};
  const size_t shared = ChunkShared::bytes(experts);
  if (shared > kDefaultShared)
    for (const auto kernel : {plan_kernel, scatter_kernel})
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared)),
            "expert_plan");
  // Without slots there is still `starts` to write.
  if (slots <= kOneBlockSlots)
    return launch_kernel("expert_plan", plan_kernel, {1, kThreads, shared}, stream.handle(), args);
  const size_t counts = static_cast<size_t>(experts) * sizeof(int32_t);
  args.counts = reinterpret_cast<int32_t*>(stream.scratch(counts * static_cast<size_t>(chunks)));
  const auto blocks = static_cast<unsigned>(chunks);
  launch_kernel("expert_plan count", count_kernel, {blocks, kThreads, counts}, stream.handle(),
                args);
  launch_kernel("expert_plan scatter", scatter_kernel, {blocks, kThreads, shared}, stream.handle(),
                args);
}

}  // namespace loza::cuda
