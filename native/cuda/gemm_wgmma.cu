#include "cuda/gemm_wgmma.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "cuda/check.h"
#include "cuda/gemm_wgmma.cuh"
#include "cuda/types.cuh"
#include "ops/linear/linear.h"

namespace loza::cuda {

namespace {

using namespace wgmma_gemm;

// Large: as many row blocks as registers hold; f8e4m3 needs a second set of sums.
template <DType kType>
struct Shapes {
  using Small = Traits<kType, 2, 6>;
  using Middle = Traits<kType, 4, 4>;
  using Large = Traits<kType, kType == DType::kF8E4M3 ? 4 : 5, 4>;
};

bool aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}

// Boxes of 64 rows of x.
template <class T>
TensorMap map_x(const WgmmaProduct& p) {
  const auto size = static_cast<uint64_t>(size_of(p.type));
  return make_tensor_map(
      p.type, p.x, std::array{static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.rows)},
      std::array{static_cast<uint64_t>(p.x_stride) * size},
      std::array{static_cast<uint32_t>(T::kDepth), static_cast<uint32_t>(T::kBlock)},
      Swizzle::k128Bytes);
}

// Boxes of 128 columns of one expert's W.
template <class T>
TensorMap map_weight(const WgmmaProduct& p) {
  const auto size = static_cast<uint64_t>(size_of(p.type));
  return make_tensor_map(
      p.type, p.weight,
      std::array{static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.n),
                 static_cast<uint64_t>(p.experts)},
      std::array{
          static_cast<uint64_t>(p.weight_stride) * size,
          static_cast<uint64_t>(p.experts > 1 ? p.weight_expert_stride : p.n * p.weight_stride) *
              size},
      std::array{static_cast<uint32_t>(T::kDepth), static_cast<uint32_t>(T::kColumns), 1u},
      Swizzle::k128Bytes);
}

// At least as many tiles as any split of the rows among the experts gives.
template <class T>
int64_t most_tiles(const WgmmaProduct& p) {
  const int64_t rows =
      p.starts ? p.rows / T::kRows + std::min(p.experts, p.rows) : ceil_div(p.rows, T::kRows);
  return rows * ceil_div(p.n, T::kCtas * T::kColumns);
}

template <class T>
void launch_tiles(const WgmmaProduct& p, int multiprocessors, cudaStream_t stream,
                  const char* operation) {
  constexpr auto kShared = static_cast<int>(sizeof(SharedStorage<T>));
  static_assert(kShared <= 227 * 1024, "does not fit a multiprocessor");
  const int64_t out_bytes = p.out_is_f32 ? 4 : 2;
  const Params params{.out = p.out,
                      .x_scale = p.x_scale,
                      .weight_scale = p.weight_scale,
                      .starts = p.starts,
                      .counter = p.counter,
                      .out_stride = p.out_stride,
                      .x_scale_stride = p.x_scale_stride,
                      .weight_scale_stride = p.weight_scale_stride,
                      .weight_scale_expert_stride = p.weight_scale_expert_stride,
                      .first = static_cast<int>(p.first),
                      .rows = static_cast<int>(p.rows),
                      .n = static_cast<int>(p.n),
                      .experts = static_cast<int>(p.experts),
                      .steps = static_cast<int>(ceil_div(p.k, T::kDepth)),
                      .out_is_f32 = p.out_is_f32,
                      .accumulate = p.accumulate,
                      .vectors = p.n % 8 == 0 && aligned(p.out, 16) &&
                                 p.out_stride * out_bytes % 16 == 0 &&
                                 (p.out_is_f32 || !p.accumulate)};
  auto* kernel = wgmma_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        operation);
  check(cudaMemsetAsync(p.counter, 0, sizeof(int32_t), stream), operation);
  const int64_t clusters = std::min<int64_t>(multiprocessors / T::kCtas, most_tiles<T>(p));
  kernel<<<static_cast<unsigned>(clusters * T::kCtas), T::kThreads, kShared, stream>>>(
      map_x<T>(p), map_weight<T>(p), params);
  check_launch(operation);
}

// Rows that an expert may well have: loads are never equal.
int64_t usual_rows(const WgmmaProduct& p) {
  if (!p.starts) return p.rows;
  const double average = static_cast<double>(p.rows) / static_cast<double>(p.experts);
  return static_cast<int64_t>(std::ceil(average + 2 * std::sqrt(average)));
}

// Time of the busiest cluster, in that of a row block: a tile costs one more than it has.
template <class T>
int64_t cost(const WgmmaProduct& p, int multiprocessors) {
  const int64_t blocks = ceil_div(usual_rows(p), T::kBlock),
                tiles = ceil_div(blocks, T::kRowBlocks);
  const int64_t height = tiles > 2 ? T::kRowBlocks : ceil_div(blocks, tiles);
  const int64_t all = tiles * p.experts * ceil_div(p.n, T::kCtas * T::kColumns);
  return ceil_div(all, multiprocessors / T::kCtas) * (height + 1);
}

// Large tiles read less for each product; small ones divide better.
template <DType kType>
void launch_type(const WgmmaProduct& p, int multiprocessors, cudaStream_t stream,
                 const char* operation) {
  using Small = typename Shapes<kType>::Small;
  using Middle = typename Shapes<kType>::Middle;
  using Large = typename Shapes<kType>::Large;
  const int64_t small = cost<Small>(p, multiprocessors), middle = cost<Middle>(p, multiprocessors);
  const int64_t large = cost<Large>(p, multiprocessors);
  if (large <= middle && large <= small)
    return launch_tiles<Large>(p, multiprocessors, stream, operation);
  if (middle <= small) return launch_tiles<Middle>(p, multiprocessors, stream, operation);
  launch_tiles<Small>(p, multiprocessors, stream, operation);
}

}  // namespace

bool wgmma_can(const WgmmaProduct& p) {
  const int64_t size = size_of(p.type), most = INT32_MAX / 2;
  return (p.type == DType::kBF16 || p.type == DType::kF8E4M3) && aligned(p.x, 16) &&
         aligned(p.weight, 16) && p.x_stride * size % 16 == 0 && p.weight_stride * size % 16 == 0 &&
         p.weight_expert_stride * size % 16 == 0 && p.x_stride >= p.k && p.weight_stride >= p.k &&
         p.rows > 0 && p.n > 0 && p.k > 0 && p.rows < most && p.n < most;
}

void launch_wgmma(const WgmmaProduct& product, int multiprocessors, cudaStream_t stream,
                  const char* operation) {
  if (product.type == DType::kF8E4M3)
    launch_type<DType::kF8E4M3>(product, multiprocessors, stream, operation);
  else
    launch_type<DType::kBF16>(product, multiprocessors, stream, operation);
}

}  // namespace loza::cuda
