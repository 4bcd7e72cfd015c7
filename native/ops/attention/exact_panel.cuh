// Expanded attention of f32 activations in plain fp32 arithmetic: tiles of rows in shared memory and
// their products, shared by the forward kernel and reverse mode. 16 x 16 threads; thread (x, y) has
// rows y + 16 i of the first factor, and of products the second factor's rows x + 16 j, of sums its
// columns 4 x + 64 c to 4 x + 64 c + 3.
#pragma once

#include "cuda/attention_mma.cuh"
#include "cuda/reduce.cuh"

namespace loza::cuda::attention {

template <int kDepth_, int kValue_>
struct ExactTraits {
  static constexpr int kDepth = kDepth_;  // nope + rope, padded
  static constexpr int kValue = kValue_;  // padded
  static constexpr int kSide = 16, kThreads = kSide * kSide;
  static constexpr int kTile = kDepth + kValue <= 320 ? 64 : 32;  // rows; divides a block
  static constexpr int kRows = kTile / kSide;                     // of a thread
  static constexpr int kStrip = 4 * kSide;  // columns of its neighbours and it
};

struct ExactPlace {
  int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
};

// Rows are padded by 16 bytes: eight of them, read side by side, lie in different banks.
template <class T, int kColumns>
using ExactRows = float[T::kTile][kColumns + 4];

template <class T>
struct ExactPanel {
  ExactRows<T, T::kDepth> depth;  // q or k
  ExactRows<T, T::kValue> value;  // v or d_out
};

template <class T>
using ExactProducts = float[T::kRows][T::kRows];
template <class T, int kColumns>
using ExactSums = float4[T::kRows][kColumns / T::kStrip];

// Starts to copy `rows` rows; zeros behind the last one and up to the next multiple of 4 columns.
// at(row, column) points to a value; vectors where all of them lie on 16 bytes, `columns` too.
template <class T, int kStride, class At>
__device__ void load_rows(float (&to)[T::kTile][kStride], int rows, int columns, bool vector,
                          const At& at) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int padded = (columns + 3) / 4 * 4, step = vector ? 4 : 1;
  for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < T::kTile;
       row += T::kThreads / kWarpSize)
    for (int i = lane * step; i < padded; i += kWarpSize * step) {
      const bool valid = row < rows && i < columns;
      if (vector)
        cp_async_16(&to[row][i], at(valid ? row : 0, valid ? i : 0), valid ? 16 : 0);
      else if (valid)
        cp_async_4(&to[row][i], at(row, i));
      else
        to[row][i] = 0;
    }
}

__device__ inline void add_product(float& sum, const float4& a, const float4& b) {
  sum = fmaf(a.x, b.x, sum), sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum), sum = fmaf(a.w, b.w, sum);
}

__device__ inline void add_scaled(float4& sum, float factor, const float4& b) {
  sum.x = fmaf(factor, b.x, sum.x), sum.y = fmaf(factor, b.y, sum.y);
  sum.z = fmaf(factor, b.z, sum.z), sum.w = fmaf(factor, b.w, sum.w);
}

// products[i][j] = a[y + 16 i] . b[x + 16 j]
template <class T, int kStride>
__device__ void multiply(ExactProducts<T>& products, const float (&a)[T::kTile][kStride],
                         const float (&b)[T::kTile][kStride], int columns, const ExactPlace& at) {
#pragma unroll 2
  for (int k = 0; k < columns; k += 4) {
    float4 left[T::kRows], right[T::kRows];
#pragma unroll
    for (int i = 0; i < T::kRows; i++) {
      left[i] = *reinterpret_cast<const float4*>(&a[at.y + i * T::kSide][k]);
      right[i] = *reinterpret_cast<const float4*>(&b[at.x + i * T::kSide][k]);
    }
#pragma unroll
    for (int i = 0; i < T::kRows; i++)
#pragma unroll
      for (int j = 0; j < T::kRows; j++) add_product(products[i][j], left[i], right[j]);
  }
}

// sums[i] += sum over j < count of weights[y + 16 i][j] * b[j], j ascending
template <class T, int kColumns>
__device__ void add(ExactSums<T, kColumns>& sums, const ExactRows<T, T::kTile>& weights,
                    const ExactRows<T, kColumns>& b, int count, const ExactPlace& at) {
  for (int j = 0; j < count; j += 4) {
    float weight[T::kRows][4];
#pragma unroll
    for (int i = 0; i < T::kRows; i++)
      *reinterpret_cast<float4*>(weight[i]) =
          *reinterpret_cast<const float4*>(&weights[at.y + i * T::kSide][j]);
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int c = 0; c < kColumns / T::kStrip; c++) {
        const float4 value = *reinterpret_cast<const float4*>(&b[j + k][4 * at.x + c * T::kStrip]);
#pragma unroll
        for (int i = 0; i < T::kRows; i++) add_scaled(sums[i][c], weight[i][k], value);
      }
  }
}

// Calls to(row, column, value) with the first `columns` columns of this thread's row i.
template <class T, int kColumns, class To>
__device__ void for_each_sum(const ExactSums<T, kColumns>& sums, int i, int columns,
                             const ExactPlace& at, const To& to) {
#pragma unroll
  for (int c = 0; c < kColumns / T::kStrip; c++) {
    const float values[4] = {sums[i][c].x, sums[i][c].y, sums[i][c].z, sums[i][c].w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int column = 4 * at.x + c * T::kStrip + k;
      if (column < columns) to(column, values[k]);
    }
  }
}

// Calls body(ExactTraits<...>{}) with the least sizes that hold these; false where none do.
template <class Body>
bool with_exact_traits(int depth, int value, const Body& body) {
  if (depth <= 64 && value <= 64)
    body(ExactTraits<64, 64>{});
  else if (depth <= 128 && value <= 128)
    body(ExactTraits<128, 128>{});
  else if (depth <= 192 && value <= 128)
    body(ExactTraits<192, 128>{});
  else if (depth <= 256 && value <= 256)
    body(ExactTraits<256, 256>{});
  else
    return false;
  return true;
}

}  // namespace loza::cuda::attention
