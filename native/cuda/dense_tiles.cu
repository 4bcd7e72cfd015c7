// The product of one matrix, or of one a head, with bf16 activations: the tiles of gemm_tile.cuh.
#include "cuda/gemm_tile.cuh"
#include "cuda/product.h"

namespace loza::cuda {
namespace {

struct DenseParams {
  const Bf16* x;       // [rows, heads, k]
  const void* weight;  // [heads, n, k] or [heads, k, n]
  const float* scale;  // f32 [ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  void* out;           // bf16 | f32 [rows, heads, n]
  int64_t x_stride, x_head_stride;
  int64_t weight_stride, weight_head_stride;  // in bytes from head to head
  int64_t scale_stride;
  int64_t out_stride, out_head_stride;
  int64_t rows;
  int heads, n, k;
  bool x_aligned, weight_aligned, out_aligned, out_is_f32, accumulate;
};

// Grid: x = tiles of rows and columns, z = heads. Neighbours in time share rows and columns: groups
// of kGroup row tiles walk the columns together, so that both operands come from L2.
template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kCtas)
    dense_kernel(const __grid_constant__ DenseParams params) {
  constexpr int kGroup = 8;
  extern __shared__ __align__(16) unsigned char memory[];
  launch_dependents();
  wait_for_prerequisites();
  const int column_tiles = (params.n + T::kColumns - 1) / T::kColumns;
  const int row_tiles = static_cast<int>((params.rows + T::kRows - 1) / T::kRows);
  const int tile = static_cast<int>(blockIdx.x);
  const int group = tile / (kGroup * column_tiles), within = tile % (kGroup * column_tiles);
  const int height = min(kGroup, row_tiles - group * kGroup);
  const int64_t row = int64_t{group * kGroup + within % height} * T::kRows;
  const int column = within / height * T::kColumns;
  const int64_t head = blockIdx.z;
  const auto* weight = static_cast<const char*>(params.weight) + head * params.weight_head_stride;
  const int64_t out = row * params.out_stride + head * params.out_head_stride + column;
  const TileTask task{
      .x = params.x + head * params.x_head_stride + row * params.x_stride,
      .weight = weight + (T::kAlongK ? column * params.weight_stride : int64_t{column}) *
                             static_cast<int64_t>(sizeof(typename T::Weight)),
      .scale = params.scale ? params.scale + column / kScaleBlock * params.scale_stride : nullptr,
      .out = static_cast<char*>(params.out) + out * (params.out_is_f32 ? 4 : 2),
      .x_stride = params.x_stride,
      .weight_stride = params.weight_stride,
      .out_stride = params.out_stride,
      .rows = static_cast<int>(min(static_cast<int64_t>(T::kRows), params.rows - row)),
      .columns = min(T::kColumns, params.n - column),
      .k = params.k,
      .x_aligned = params.x_aligned,
      .weight_aligned = params.weight_aligned,
      .out_aligned = params.out_aligned,
      .out_is_f32 = params.out_is_f32,
      .accumulate = params.accumulate};
  run_tile<T>(*reinterpret_cast<TileStorage<T>*>(memory), task, [](int i) { return int64_t{i}; });
}

DenseParams dense_of(const Product& product) {
  const Tensor &x = product.x, &weight = product.weight, &out = product.out;
  const int last = weight.rank - 1;
  return {.x = x.as<const Bf16>(),
          .weight = weight.data,
          .scale = product.scale.as<const float>(),
          .out = out.data,
          .x_stride = x.stride(0),
          .x_head_stride = product.x_head_stride(),
          .weight_stride = product.weight_stride(),
          .weight_head_stride = product.weight_head_stride() * size_of(weight.dtype),
          .scale_stride = product.scale_stride(),
          .out_stride = out.stride(0),
          .out_head_stride = product.out_head_stride(),
          .rows = product.rows(),
          .heads = static_cast<int>(product.heads()),
          .n = static_cast<int>(product.n()),
          .k = static_cast<int>(product.k()),
          .x_aligned = rows_aligned(x, 16, last),
          .weight_aligned = rows_aligned(weight, 16, product.along_n ? last - 1 : last),
          .out_aligned = rows_aligned(out, 2 * size_of(out.dtype), last),
          .out_is_f32 = out.dtype == DType::kF32,
          .accumulate = product.accumulate};
}

template <class T>
void launch_dense(const DenseParams& params, cudaStream_t stream, const char* operation) {
  constexpr size_t kShared = sizeof(TileStorage<T>);
  static_assert(kShared * T::kCtas <= 227 * 1024, "does not fit a multiprocessor");
  const int64_t tiles =
      (params.rows + T::kRows - 1) / T::kRows * ((params.n + T::kColumns - 1) / T::kColumns);
  allow_shared(dense_kernel<T>, kShared, operation);
  const dim3 grid(static_cast<unsigned>(tiles), 1, static_cast<unsigned>(params.heads));
  launch_kernel(operation, dense_kernel<T>, {grid, T::kThreads, kShared}, stream, params);
}

// The tile that wastes the fewest rows, and the large one only where there is enough to do.
template <class Tile>
void launch_rows(const DenseParams& params, int multiprocessors, cudaStream_t stream,
                 const char* operation) {
  const int64_t large = (params.rows + 127) / 128 * ((params.n + 127) / 128) * params.heads;
  if (params.rows <= 16)
    launch_dense<typename Tile::Rows16>(params, stream, operation);
  else if (params.rows <= 32)
    launch_dense<typename Tile::Rows32>(params, stream, operation);
  else if (params.rows <= 64 || large < multiprocessors)
    launch_dense<typename Tile::Rows64>(params, stream, operation);
  else
    launch_dense<typename Tile::Rows128>(params, stream, operation);
}

}  // namespace

void run_tiles(const Product& product, CudaStream& stream, const char* operation) {
  const DenseParams dense = dense_of(product);
  with_tiles(product.weight.dtype, product.along_n, [&]<class Tile>(Tile) {
    launch_rows<Tile>(dense, stream.multiprocessors(), stream.handle(), operation);
  });
}

}  // namespace loza::cuda
