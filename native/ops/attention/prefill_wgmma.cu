// Expanded attention with Hopper's warpgroup instructions; formula and shapes as in prefill.cu.
//
// Grid: persistent CTAs, one a multiprocessor, which take items (a query tile of 128 rows, a head) from
// a counter. A producer thread copies queries once an item and tiles of keys and values in two stages
// (TMA). Two consumers of 64 rows each take turns on the tensor cores: while one turns scores into
// weights, the other multiplies. Each starts the scores of a tile before the sums of the one before.
#include "ops/attention/prefill_wgmma.h"

#include <algorithm>

#include "ops/attention/prefill_compute.cuh"
#include "ops/attention/prefill_load.cuh"

namespace loza::cuda::attention {
namespace {

template <class Traits>
__device__ __forceinline__ void initialise(PrefillStorage<Traits>& shared) {
  constexpr int kWarps = Traits::kWarps;
  for (int i = 0; i < Traits::kConsumers; i++) {
    barrier_init(&shared.q_full[i], 1);
    barrier_init(&shared.q_empty[i], kWarps);
  }
  for (int i = 0; i < Traits::kStages; i++) {
    barrier_init(&shared.k_full[i], 1), barrier_init(&shared.v_full[i], 1);
    barrier_init(&shared.k_empty[i], Traits::kConsumers * kWarps);
    barrier_init(&shared.v_empty[i], Traits::kConsumers * kWarps);
  }
  barrier_init_fence();
}

// Waits for the keys of a tile and starts its scores.
template <class Traits>
__device__ __forceinline__ KeyTile start_tile(PrefillStorage<Traits>& shared, uint32_t tile,
                                              Consumer<Traits>& c,
                                              float (&scores)[Traits::kKeyTile / 2]) {
  const uint32_t stage = tile % Traits::kStages;
  barrier_wait(&shared.k_full[stage], tile / Traits::kStages & 1);
  const KeyTile now = shared.key_tile[stage];
  c.take_turn();
  start_scores(shared, stage, c.group, scores);
  return now;
}

// After the scores of a tile: the memory of its keys is free.
template <class Traits>
__device__ __forceinline__ void release_keys(PrefillStorage<Traits>& shared, uint32_t tile,
                                             const KeyTile& now, const Consumer<Traits>& c) {
  c.release(&shared.k_empty[tile % Traits::kStages]);
  if (now.last) c.release(&shared.q_empty[c.group]);
}

// Waits for the values of a tile and starts their sum.
template <class Traits>
__device__ __forceinline__ void add_values(PrefillStorage<Traits>& shared, uint32_t tile,
                                           Consumer<Traits>& c) {
  const uint32_t stage = tile % Traits::kStages;
  barrier_wait(&shared.v_full[stage], tile / Traits::kStages & 1);
  start_sums(shared, stage, c);
}

// One query tile: `tile` counts key tiles through all items.
template <class Traits>
__device__ __forceinline__ void attend(const PrefillProblem& problem,
                                       PrefillStorage<Traits>& shared, uint32_t& tile,
                                       Consumer<Traits>& c) {
  float scores[Consumer<Traits>::kScores];
  KeyTile now = start_tile(shared, tile, c, scores);
  c.pass_turn();
  wgmma_wait<0>();
  wgmma_pin(scores);
  release_keys(shared, tile, now, c);
  mask(now, c, scores);
  soften_first(c, scores, problem.scale);
  while (!now.last) {
    clear_values(shared, tile, now.keys, c);
    tile++;
    now = start_tile(shared, tile, c, scores);
    add_values(shared, tile - 1, c);
    c.pass_turn();
    wgmma_wait<1>();
    wgmma_pin(scores);
    release_keys(shared, tile, now, c);
    mask(now, c, scores);
    wgmma_wait<0>();
    wgmma_pin(c.sums);
    c.release(&shared.v_empty[(tile - 1) % Traits::kStages]);
    soften(c, scores, problem.scale);
  }
  clear_values(shared, tile, now.keys, c);
  add_values(shared, tile, c);
  wgmma_wait<0>();
  wgmma_pin(c.sums);
  c.release(&shared.v_empty[tile % Traits::kStages]);
  tile++;
}

// Out: bf16 to write, float to merge with what is there.
template <class Traits, class Out>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    prefill_wgmma_kernel(const __grid_constant__ PrefillMaps maps, const PrefillProblem problem,
                         const PrefillPlan plan, int head_group) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<PrefillStorage<Traits>*>(shared_bytes);
  if (threadIdx.x == 0) initialise(shared);
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x) / Traits::kWarpgroup;
  if (warpgroup == 0) {
    release_registers<Traits::kProducerRegisters>();
    if (threadIdx.x == 0) Producer<Traits>{problem, plan, maps, shared, head_group}.run();
    return;
  }
  claim_registers<Traits::kConsumerRegisters>();
  Consumer<Traits> c;
  c.group = warpgroup - 1;
  c.thread = static_cast<int>(threadIdx.x) % Traits::kWarpgroup;
  if (c.group == 1) c.pass_turn();  // consumer 0 is the first
  uint32_t tile = 0;
  for (uint32_t item = 0;; item++) {
    barrier_wait(&shared.q_full[c.group], item & 1);
    const Work work = shared.work[c.group];
    if (work.head < 0) break;
    if constexpr (std::is_same_v<Out, float>)
      load_state(problem, work, c);
    else
      clear_state(c);
    attend(problem, shared, tile, c);
    store_state<Out>(problem, shared, maps.out, work, c);
  }
  if constexpr (std::is_same_v<Out, bf16>)
    if (c.thread % kLanes == 0) tma_store_wait_read<0>();
}

// ---- Launch ----

TensorMap map_of(const Tensor& tensor, uint32_t columns, uint32_t rows, Swizzle swizzle) {
  const auto size = [&](int i) { return static_cast<uint64_t>(tensor.dim(i)); };
  const auto stride = [&](int i) {
    return static_cast<uint64_t>(tensor.stride(i) * size_of(tensor.dtype));
  };
  if (tensor.rank == 2) {
    const uint64_t sizes[] = {size(1), size(0)}, strides[] = {stride(0)};
    const uint32_t box[] = {columns, rows};
    return make_tensor_map(tensor.dtype, tensor.data, sizes, strides, box, swizzle);
  }
  const uint64_t sizes[] = {size(2), size(1), size(0)}, strides[] = {stride(1), stride(0)};
  const uint32_t box[] = {columns, 1, rows};
  return make_tensor_map(tensor.dtype, tensor.data, sizes, strides, box, swizzle);
}

// Heads whose keys lie side by side in memory and, for a while, in the L2.
int head_group(int heads) {
  constexpr int kMost = 16;
  const int groups = (heads + kMost - 1) / kMost;
  return (heads + groups - 1) / groups;
}

template <class Traits, class Out>
void launch_as(const AttentionPrefillParams& params, const PrefillProblem& problem,
               std::byte* scratch, int multiprocessors, cudaStream_t stream) {
  constexpr uint32_t kPanel = Traits::kPanel, kKeys = Traits::kKeyTile;
  constexpr uint32_t kRows = Traits::kConsumerRows;
  constexpr size_t kBytes = sizeof(PrefillStorage<Traits>);
  const PrefillMaps maps{map_of(params.q, kPanel, kRows, Swizzle::k128Bytes),
                         map_of(params.kv, kPanel, kKeys, Swizzle::k128Bytes),
                         map_of(params.k_rope, kPanel, kKeys, Swizzle::k128Bytes),
                         problem.merges ? map_of(params.out, Traits::kValue, kRows, Swizzle::kNone)
                                        : map_of(params.out, kPanel, 16, Swizzle::k128Bytes)};
  const PrefillPlan plan = place_plan(problem, scratch);
  allow_shared_memory<prefill_wgmma_kernel<Traits, Out>>(kBytes);
  plan_prefill_kernel<<<1, kPlanThreads, 0, stream>>>(problem, plan);
  check_launch("attention_prefill");
  const int64_t items = max_tiles(problem) * problem.heads;
  const auto ctas = static_cast<unsigned>(std::min<int64_t>(multiprocessors, items));
  prefill_wgmma_kernel<Traits, Out>
      <<<ctas, Traits::kThreads, kBytes, stream>>>(maps, problem, plan, head_group(problem.heads));
  check_launch("attention_prefill");
}

using LongCat = PrefillTraits<128, 64, 128, 128>;
using Glm = PrefillTraits<192, 64, 256, 64>;

template <class Traits>
void launch_for(const AttentionPrefillParams& params, const PrefillProblem& problem,
                std::byte* scratch, int multiprocessors, cudaStream_t stream) {
  if (problem.merges)
    launch_as<Traits, float>(params, problem, scratch, multiprocessors, stream);
  else
    launch_as<Traits, bf16>(params, problem, scratch, multiprocessors, stream);
}

template <class Traits>
bool fits(const PrefillProblem& problem) {
  return problem.nope == Traits::kNope && problem.rope == Traits::kRope &&
         problem.value == Traits::kValue;
}

}  // namespace

bool has_wgmma_prefill(const PrefillProblem& problem, const Tensor& out) {
  return problem.vector && on_chunks(out) && (fits<LongCat>(problem) || fits<Glm>(problem));
}

size_t wgmma_prefill_scratch(const PrefillProblem& problem) { return plan_bytes(problem); }

void launch_wgmma_prefill(const AttentionPrefillParams& params, const PrefillProblem& problem,
                          std::byte* scratch, int multiprocessors, cudaStream_t stream) {
  if (fits<LongCat>(problem))
    launch_for<LongCat>(params, problem, scratch, multiprocessors, stream);
  else
    launch_for<Glm>(params, problem, scratch, multiprocessors, stream);
}

}  // namespace loza::cuda::attention
