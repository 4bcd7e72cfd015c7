// Sorts slots by expert, stably: a counting sort over chunks of 1,024 slots.
//   count    a block a chunk: counts[chunk][e] = slots of expert e in the chunk
//   scan     one block: before[chunk][e] = sorted place of the chunk's first slot of expert e; starts
//   scatter  a block a chunk: place = before + rank inside the chunk
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
constexpr int64_t kMaxExperts = 8192;  // an int of shared memory each

struct PlanArgs {
  int32_t* order;           // [slots]
  int32_t* place;           // [slots]
  int32_t* starts;          // [experts + 1]
  Rows<const int32_t> ids;  // [rows, top_k]
  int32_t slots, top_k, experts;
  int32_t* counts;  // [chunks, experts], in scratch
  int32_t* before;  // [chunks, experts], in scratch
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

// next[e] = place of the first slot of expert e that is still to come; warps take turns in the
// order of their slots, and leave `next` behind what they placed.
__device__ void scatter_chunk(const PlanArgs& args, int chunk, int32_t* next) {
  const int32_t slot = chunk * kChunk + threadIdx.x;
  const int32_t expert = args.expert_of(slot);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned peers = __match_any_sync(kFullWarp, expert);
  const int rank = __popc(peers & ((1u << lane) - 1));
  const int turns = static_cast<int>(ceil_div(min(kChunk, args.slots - chunk * kChunk), kWarpSize));
  int32_t first = 0;
  for (int turn = 0; turn < turns; turn++) {
    if (turn == warp && expert >= 0 && rank == 0) {
      first = next[expert];
      next[expert] = first + __popc(peers);
    }
    __syncthreads();
  }
  first = __shfl_sync(kFullWarp, first, __ffs(peers) - 1);
  if (slot >= args.slots) return;
  args.place[slot] = expert < 0 ? -1 : first + rank;
  if (expert >= 0) args.order[first + rank] = slot;
}

// starts = exclusive prefix sums of count(e), and the total at the end; use(e, starts[e]) for each.
template <class Count, class Use>
__device__ void scan_experts(const PlanArgs& args, const Count& count, const Use& use) {
  __shared__ int32_t sums[kMaxWarps];
  int32_t base = 0;
  for (int32_t tile = 0; tile < args.experts; tile += kThreads) {
    const int32_t expert = tile + static_cast<int32_t>(threadIdx.x);
    const bool valid = expert < args.experts;
    const auto [before, total] = block_prefix<int32_t>(valid ? count(expert) : 0, sums);
    if (valid) {
      args.starts[expert] = base + before;
      use(expert, base + before);
    }
    base += total;
  }
  if (threadIdx.x == 0) args.starts[args.experts] = base;
}

__global__ void __launch_bounds__(kThreads) plan_kernel(PlanArgs args) {
  extern __shared__ int32_t next[];  // [experts]: counts first, then places
  launch_dependents();
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) next[e] = 0;
  wait_for_prerequisites();
  __syncthreads();
  for (int chunk = 0; chunk < args.chunks; chunk++) count_chunk(args, chunk, next);
  __syncthreads();
  scan_experts(
      args, [&](int32_t e) { return next[e]; }, [&](int32_t e, int32_t start) { next[e] = start; });
  __syncthreads();
  for (int chunk = 0; chunk < args.chunks; chunk++) scatter_chunk(args, chunk, next);
}

__global__ void __launch_bounds__(kThreads) count_kernel(PlanArgs args) {
  extern __shared__ int32_t counts[];  // [experts]
  launch_dependents();
  wait_for_prerequisites();
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  count_chunk(args, blockIdx.x, counts);
  __syncthreads();
  int32_t* out = args.counts + static_cast<int64_t>(blockIdx.x) * args.experts;
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads) out[e] = counts[e];
}

__global__ void __launch_bounds__(kThreads) scan_kernel(PlanArgs args) {
  launch_dependents();
  wait_for_prerequisites();
  const auto total = [&](int32_t expert) {
    int32_t sum = 0;
#pragma unroll 8
    for (int chunk = 0; chunk < args.chunks; chunk++) {
      const int64_t at = static_cast<int64_t>(chunk) * args.experts + expert;
      const int32_t count = args.counts[at];
      args.before[at] = sum;
      sum += count;
    }
    return sum;
  };
  scan_experts(args, total, [](int32_t, int32_t) {});
}

__global__ void __launch_bounds__(kThreads) scatter_kernel(PlanArgs args) {
  extern __shared__ int32_t next[];  // [experts]
  launch_dependents();
  wait_for_prerequisites();
  const int32_t* before = args.before + static_cast<int64_t>(blockIdx.x) * args.experts;
  for (int32_t e = threadIdx.x; e < args.experts; e += kThreads)
    next[e] = args.starts[e] + before[e];
  __syncthreads();
  scatter_chunk(args, blockIdx.x, next);
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
                .before = nullptr,
                .chunks = static_cast<int32_t>(chunks)};
  const size_t shared = static_cast<size_t>(experts) * sizeof(int32_t);
  const auto blocks = static_cast<unsigned>(chunks);
  // Without slots there is still `starts` to write.
  if (slots <= kOneBlockSlots) {
    return launch_kernel("expert_plan", plan_kernel, {1, kThreads, shared}, stream.handle(), args);
  }
  const size_t table = static_cast<size_t>(chunks) * shared;
  std::byte* scratch = stream.scratch(2 * table);
  args.counts = reinterpret_cast<int32_t*>(scratch);
  args.before = reinterpret_cast<int32_t*>(scratch + table);
  const Grid chunked{blocks, kThreads, shared};
  launch_kernel("expert_plan count", count_kernel, chunked, stream.handle(), args);
  launch_kernel("expert_plan scan", scan_kernel, {1, kThreads}, stream.handle(), args);
  launch_kernel("expert_plan scatter", scatter_kernel, chunked, stream.handle(), args);
}

}  // namespace loza::cuda
