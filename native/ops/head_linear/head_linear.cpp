#include "ops/head_linear/head_linear.h"

#include "core/parallel.h"
#include "cpu/gemm.h"
#include "ops/cpu_ops.h"

namespace loza {

void HeadLinearParams::check(DType act) const {
  expect_weight("head_linear: weight", weight, 3);
  loza::check(weight.dtype != DType::kF8E4M3, "head_linear: weight is ", weight);
  const int64_t heads = weight.dim(0), n = weight.dim(1), k = weight.dim(2);
  loza::check(weight.stride(2) == 1 || weight.stride(1) == 1 || n == 1 || k == 1,
              "head_linear: neither n nor k of the weight is contiguous: ", weight);
  expect("head_linear: x", x, act, -1, heads, k);
  expect("head_linear: out", out, out.dtype == act ? act : DType::kF32, x.dim(0), heads, n);
}

namespace cpu {
namespace {

constexpr int kStripVectors = 4;
constexpr int64_t kStrip = kStripVectors * simd::kWidth;

struct StripTag;

// Some rows of one head whose weight is contiguous along n: the axpy form of gemm.h.
struct AxpyTask {
  const float* const* x;  // [rows], each k values
  float* const* out;      // [rows], each pointing at column 0
  int64_t rows, n_begin, n_end, k;
  const void* weight;  // [k, n]
  DType dtype;
  int64_t weight_stride;  // between rows of k
};

template <int R, class T>
LOZA_INLINE void strip_rows(const AxpyTask& task, const T* strip, int64_t stride, int64_t row,
                            int64_t n) {
  simd::f32x8 sums[R][kStripVectors] = {};
  const float* x[R];
  for (int r = 0; r < R; r++) x[r] = task.x[row + r];
  gemm::axpy_tile(sums, x, strip, stride, task.k);
  const int64_t columns = std::min(kStrip, task.n_end - n);
  LOZA_UNROLL
  for (int r = 0; r < R; r++)
    std::memcpy(task.out[row + r] + n, sums[r], static_cast<size_t>(columns) * sizeof(float));
}

template <class T>
LOZA_INLINE void strip_all_rows(const AxpyTask& task, const T* strip, int64_t stride, int64_t n) {
  const int most = gemm::tile_rows();
  for (int64_t row = 0, rows; row < task.rows; row += rows) {
    rows = gemm::next_rows(task.rows - row, most);
    LOZA_FOR_ROWS(rows, strip_rows, task, strip, stride, row, n)
  }
}

// The strip in f32, [k][kStrip], zeros past n_end.
template <class T>
LOZA_INLINE void pack_strip(float* packed, const AxpyTask& task, const T* strip, int64_t n) {
  const int64_t columns = std::min(kStrip, task.n_end - n);
  for (int64_t k = 0; k < task.k; k++, strip += task.weight_stride, packed += kStrip) {
    for (int64_t c = 0; c < kStrip; c += simd::kWidth) {
      const int64_t left = std::max<int64_t>(0, columns - c);
      simd::store(packed + c, left >= simd::kWidth
                                  ? simd::load(strip + c)
                                  : simd::load_first(strip + std::min(c, columns), left));
    }
  }
}

template <class T>
LOZA_INLINE void run_strips(const AxpyTask& task) {
  // Conversion in place pays for itself only while few rows repeat it.
  const bool convert = !std::is_same_v<T, float> && task.rows > gemm::tile_rows();
  for (int64_t n = task.n_begin; n < task.n_end; n += kStrip) {
    const T* strip = static_cast<const T*>(task.weight) + n;
    if (!convert && n + kStrip <= task.n_end) {
      strip_all_rows(task, strip, task.weight_stride, n);
      continue;
    }
    float* packed = simd::scratch<StripTag>(task.k * kStrip);
    pack_strip(packed, task, strip, n);
    strip_all_rows<float>(task, packed, kStrip, n);
  }
}

LOZA_MULTIVERSION void run_axpy(const AxpyTask& task) {
  if (task.dtype == DType::kF32) run_strips<float>(task);
  if (task.dtype == DType::kBF16) run_strips<simd::Bf16>(task);
}

LOZA_MULTIVERSION void run_task(const gemm::Task& task) { gemm::run_task(task); }

struct Block {
  int64_t head, first_row, rows, n_begin, n_end;
};

void run_block(const HeadLinearParams& params, const Block& block) {
  const float* x[gemm::kRowBlock];
  float* out[gemm::kRowBlock];
  for (int64_t r = 0; r < block.rows; r++) {
    const int64_t row = block.first_row + r;
    x[r] = params.x.as<float>() + row * params.x.stride(0) + block.head * params.x.stride(1);
    out[r] =
        params.out.as<float>() + row * params.out.stride(0) + block.head * params.out.stride(1);
  }
  const Tensor& weight = params.weight;
  const int64_t k = weight.dim(2);
  const void* matrix = weight.as<char>() + block.head * weight.stride(0) * size_of(weight.dtype);
  if (weight.stride(2) == 1 || k == 1) {
    run_task({.x = x,
              .out = out,
              .rows = block.rows,
              .n_begin = block.n_begin,
              .n_end = block.n_end,
              .k = k,
              .weight = matrix,
              .dtype = weight.dtype,
              .weight_stride = weight.stride(1)});
  } else {
    run_axpy({x, out, block.rows, block.n_begin, block.n_end, k, matrix, weight.dtype,
              weight.stride(2)});
  }
}

}  // namespace

void compute(const HeadLinearParams& params) {
  const int64_t rows = params.x.dim(0), heads = params.weight.dim(0);
  const int64_t n = params.weight.dim(1), k = params.weight.dim(2);
  const int64_t blocks = (rows + gemm::kRowBlock - 1) / gemm::kRowBlock;
  const int64_t panels = (n + gemm::kPanel - 1) / gemm::kPanel;
  const int64_t work = std::min(rows, gemm::kRowBlock) * std::min(n, gemm::kPanel) * k;
  parallel_for(heads * panels * blocks, gemm::grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * gemm::kRowBlock;
      const int64_t column = item / blocks % panels * gemm::kPanel;
      run_block(params, {item / blocks / panels, first, std::min(gemm::kRowBlock, rows - first),
                         column, std::min(n, column + gemm::kPanel)});
    }
  });
}

}  // namespace cpu
}  // namespace loza
