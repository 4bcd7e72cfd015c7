// Sums of outer products with bf16 activations. y and x lie along n and k, so both operands reach the
// tensor cores transposed (ldmatrix). bf16 products, fp32 sums; every sum starts from what `out` holds
// and runs over ascending rows in one CTA.
// Grid: x = tiles along k, y = tiles along n, z = experts.
#include "cuda/gemm_tile.cuh"
#include "cuda/outer_operands.cuh"

namespace loza::cuda {
namespace {

struct OuterParams : OuterOperands<Bf16> {
  bool y_aligned, x_aligned;  // every row starts at a multiple of 16 bytes
  bool out_aligned;           // every row starts at a multiple of two values
};

struct OuterTile {
  static constexpr int kSide = 128, kDepth = 32, kStages = 3;
  static constexpr int kRowWarps = 2, kColumnWarps = 4, kThreads = 32 * kRowWarps * kColumnWarps;
  static constexpr int kWarpRows = kSide / kRowWarps, kWarpColumns = kSide / kColumnWarps;
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  static constexpr int kStride = kSide + 8;  // puts the rows that ldmatrix reads into other banks
  static constexpr int kChunk = 8, kPerRow = kSide / kChunk;
  static constexpr int kChunks = kDepth * kPerRow / kThreads;  // a thread, of each operand
};

struct OuterStorage {
  alignas(16) Bf16 y[OuterTile::kStages][OuterTile::kDepth * OuterTile::kStride];
  alignas(16) Bf16 x[OuterTile::kStages][OuterTile::kDepth * OuterTile::kStride];
};

using OuterSums = float[OuterTile::kRowTiles][OuterTile::kColumnTiles][4];

// Rows step .. step + kDepth of the expert, whose rows begin at `first` and end at `end`.
__device__ inline void load_outer(OuterStorage& shared, const OuterParams& params, int64_t first,
                                  int64_t end, int stage) {
  using T = OuterTile;
  const int column = static_cast<int>(threadIdx.x) % T::kPerRow * T::kChunk;
  const int n = static_cast<int>(blockIdx.y) * T::kSide + column;
  const int k = static_cast<int>(blockIdx.x) * T::kSide + column;
#pragma unroll
  for (int i = 0; i < T::kChunks; i++) {
    const int depth = static_cast<int>(threadIdx.x) / T::kPerRow + i * (T::kThreads / T::kPerRow);
    const int64_t row = first + depth;
    const bool exists = row < end;
    const int64_t source = !exists ? 0 : params.order ? params.order[row] / params.top_k : row;
    copy_chunk(&shared.y[stage][depth * T::kStride + column],
               params.y + (exists ? row : 0) * params.y_stride + n, exists ? params.n - n : 0,
               params.y_aligned, params.y);
    copy_chunk(&shared.x[stage][depth * T::kStride + column],
               params.x + source * params.x_stride + k, exists ? params.k - k : 0, params.x_aligned,
               params.x);
  }
}

// Layouts: see mma_bf16. Matrices of ldmatrix lie as [8 rows][8 columns] and arrive transposed:
// of y columns 0-7 and 8-15 at rows 0-7, then both at rows 8-15; of x columns 0-7 at rows 0-7 and
// 8-15, then columns 8-15.
__device__ inline void multiply_outer(OuterSums& sums, const Bf16* y, const Bf16* x) {
  using T = OuterTile;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  y += (lane / 16 * 8 + lane % 8) * T::kStride + warp / T::kColumnWarps * T::kWarpRows +
       lane / 8 % 2 * 8;
  x += lane % 16 * T::kStride + warp % T::kColumnWarps * T::kWarpColumns + lane / 16 * 8;
#pragma unroll
  for (int depth = 0; depth < T::kDepth; depth += 16) {
    uint32_t a[T::kRowTiles][4];
#pragma unroll
    for (int row = 0; row < T::kRowTiles; row++)
      ldmatrix_x4_transposed(a[row], y + depth * T::kStride + row * 16);
#pragma unroll
    for (int column = 0; column < T::kColumnTiles; column += 2) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, x + depth * T::kStride + column * 8);
#pragma unroll
      for (int row = 0; row < T::kRowTiles; row++) {
        mma_bf16(sums[row][column], a[row], b[0], b[1]);
        mma_bf16(sums[row][column + 1], a[row], b[2], b[3]);
      }
    }
  }
}

// Calls body(sum, out, count) for each pair of sums: where they belong, and how many of them exist.
template <class Body>
__device__ inline void for_each_pair(const OuterParams& params, int64_t expert, OuterSums& sums,
                                     const Body& body) {
  using T = OuterTile;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_n =
      static_cast<int>(blockIdx.y) * T::kSide + warp / T::kColumnWarps * T::kWarpRows + lane / 4;
  const int first_k = static_cast<int>(blockIdx.x) * T::kSide +
                      warp % T::kColumnWarps * T::kWarpColumns + lane % 4 * 2;
  float* out = params.out + expert * params.out_expert_stride + first_k;
#pragma unroll
  for (int row = 0; row < T::kRowTiles * 2; row++) {
    const int n = first_n + row * 8;
#pragma unroll
    for (int column = 0; column < T::kColumnTiles; column++) {
      const int count = n < params.n ? params.k - first_k - column * 8 : 0;
      if (count > 0)
        body(&sums[row / 2][column][row % 2 * 2], out + n * params.out_stride + column * 8, count);
    }
  }
}

// The sums start from what `out` holds: its loads are under way together with those of the operands.
__device__ inline void start_outer(const OuterParams& params, int64_t expert, OuterSums& sums) {
  for_each_pair(params, expert, sums, [&](float* sum, const float* out, int count) {
    if (count > 1 && params.out_aligned) {
      const float2 pair = *reinterpret_cast<const float2*>(out);
      sum[0] = pair.x, sum[1] = pair.y;
    } else {
      sum[0] = out[0];
      if (count > 1) sum[1] = out[1];
    }
  });
}

__device__ inline void store_outer(const OuterParams& params, int64_t expert, OuterSums& sums) {
  for_each_pair(params, expert, sums, [&](const float* sum, float* out, int count) {
    if (count > 1 && params.out_aligned) {
      *reinterpret_cast<float2*>(out) = make_float2(sum[0], sum[1]);
    } else {
      out[0] = sum[0];
      if (count > 1) out[1] = sum[1];
    }
  });
}

__global__ void __launch_bounds__(OuterTile::kThreads, 2)
    outer_kernel(const __grid_constant__ OuterParams params) {
  using T = OuterTile;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<OuterStorage*>(memory);
  const int64_t expert = blockIdx.z;
  const int64_t first = params.starts ? params.starts[expert] : 0;
  const int64_t end = params.starts ? params.starts[expert + 1] : params.rows;
  const int64_t steps = (end - first + T::kDepth - 1) / T::kDepth;
  if (steps <= 0) return;
  OuterSums sums = {};
  const auto load = [&](int64_t step, int stage) {
    if (step < steps) load_outer(shared, params, first + step * T::kDepth, end, stage);
    cp_async_commit();  // an empty group past the end keeps the count
  };
  for (int stage = 0; stage < T::kStages - 1; stage++) load(stage, stage);
  start_outer(params, expert, sums);
  for (int64_t step = 0; step < steps; step++) {
    cp_async_wait<T::kStages - 2>();
    // Everybody's copies of this step have landed, and nobody reads the stage before it any more.
    __syncthreads();
    load(step + T::kStages - 1, static_cast<int>((step + T::kStages - 1) % T::kStages));
    const int stage = static_cast<int>(step % T::kStages);
    multiply_outer(sums, shared.y[stage], shared.x[stage]);
  }
  store_outer(params, expert, sums);
}

}  // namespace

void run_tiles(const OuterProduct& product, CudaStream& stream, const char* operation) {
  constexpr size_t kShared = sizeof(OuterStorage);
  const OuterParams params{operands_of<Bf16>(product), rows_aligned(product.y, 16, 1),
                           rows_aligned(product.x, 16, 1),
                           rows_aligned(product.out, 8, product.out.rank - 1)};
  allow_shared(outer_kernel, kShared, operation);
  outer_kernel<<<outer_grid(product, OuterTile::kSide), OuterTile::kThreads, kShared,
                 stream.handle()>>>(params);
  check_launch(operation);
}

}  // namespace loza::cuda
