// Number formats as the light kernels see them: everything is loaded as fp32, computed in fp32 and
// rounded once when it is stored. Also how those kernels cut a tensor into vectors and blocks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/tensor.h"
#include "cuda/launch.h"

namespace loza::cuda {

using Bf16 = __nv_bfloat16;
struct F8E4M3 {
  uint8_t bits;
};

// Elements a thread handles at a time where tensors are aligned: 16 bytes of bf16.
inline constexpr int kVector = 8;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(Bf16 value) { return __bfloat162float(value); }
// Exact: every f8e4m3 is a half.
__device__ __forceinline__ float widen(F8E4M3 value) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(value.bits, __NV_E4M3)));
}

template <class T>
__device__ __forceinline__ T narrow(float value) {
  if constexpr (std::is_same_v<T, Bf16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<T, F8E4M3>)
    return {__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)};
  else
    return value;
}

// What one vector access moves; f32 takes two of them for kVector elements.
template <class T>
inline constexpr int kAccessBytes = sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16;

template <int kBytes>
struct AccessOf {
  using Type = uint4;
};
template <>
struct AccessOf<8> {
  using Type = uint2;
};

template <class T>
union Pack {
  using Access = typename AccessOf<kAccessBytes<T>>::Type;
  static constexpr int kAccesses = sizeof(T) * kVector / kAccessBytes<T>;

  __device__ Pack() {}
  T values[kVector];
  Access accesses[kAccesses];
};

// values = from[0:kCount]; kVector elements must be aligned to kAccessBytes<T>.
template <int kCount, class T>
__device__ __forceinline__ void load(float (&values)[kCount], const T* from) {
  if constexpr (kCount == kVector) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < Pack<T>::kAccesses; i++)
      pack.accesses[i] = reinterpret_cast<const typename Pack<T>::Access*>(from)[i];
#pragma unroll
    for (int i = 0; i < kCount; i++) values[i] = widen(pack.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i++) values[i] = widen(from[i]);
  }
}

// to[0:kCount] = values, rounded to nearest even.
template <int kCount, class T>
__device__ __forceinline__ void store(T* to, const float (&values)[kCount]) {
  if constexpr (kCount == kVector) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kCount; i++) pack.values[i] = narrow<T>(values[i]);
#pragma unroll
    for (int i = 0; i < Pack<T>::kAccesses; i++)
      reinterpret_cast<typename Pack<T>::Access*>(to)[i] = pack.accesses[i];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i++) to[i] = narrow<T>(values[i]);
  }
}

// kCount values as they lie in memory: half the registers of what they widen to, where they are bf16.
template <int kCount, class T>
struct Held {
  static constexpr bool kVectors = kCount == kVector;
  std::conditional_t<kVectors, Pack<T>, T> bits;

  __device__ Held() {}
  __device__ __forceinline__ void load(const T* from) {
    if constexpr (kVectors) {
#pragma unroll
      for (int i = 0; i < Pack<T>::kAccesses; i++)
        bits.accesses[i] = reinterpret_cast<const typename Pack<T>::Access*>(from)[i];
    } else {
      static_assert(kCount == 1);
      bits = *from;
    }
  }
  __device__ __forceinline__ void widen_to(float (&values)[kCount]) const {
    if constexpr (kVectors) {
#pragma unroll
      for (int i = 0; i < kCount; i++) values[i] = widen(bits.values[i]);
    } else {
      values[0] = widen(bits);
    }
  }
};

// A tensor of rank 2 or 1 inside a kernel: row i starts at data + i * stride.
template <class T>
struct Rows {
  T* data;
  int64_t stride;  // in elements

  __device__ __forceinline__ T* operator[](int64_t row) const { return data + row * stride; }
};

template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {tensor.as<T>(), tensor.rank > 0 ? tensor.stride(0) : 0};
}

// True where every row can be read and written kVector elements at a time.
inline bool vectorisable(const Tensor& tensor) {
  const int64_t size = size_of(tensor.dtype);
  const int64_t access = std::min<int64_t>(16, size * kVector);
  if (tensor.rank == 0 || tensor.dim(-1) % kVector != 0 || tensor.stride(-1) != 1) return false;
  if (reinterpret_cast<uintptr_t>(tensor.data) % access != 0) return false;
  for (int i = 0; i < tensor.rank - 1; i++)
    if (tensor.shape[i] > 1 && tensor.strides[i] * size % access != 0) return false;
  return true;
}

// body(std::integral_constant<int, n>): n elements at a time, kVector or kScalar.
template <int kScalar = 1, class Body>
void with_count(bool vector, const Body& body) {
  if (vector) return body(std::integral_constant<int, kVector>{});
  body(std::integral_constant<int, kScalar>{});
}

// Calls body(T{}) with the C++ type of a f32 or bf16 tensor.
template <class Body>
void with_float_type(DType dtype, const Body& body) {
  if (dtype == DType::kF32) return body(float{});
  if (dtype == DType::kBF16) return body(Bf16{});
  fail(code::kInternal, "expected f32 or bf16, got ", name_of(dtype));
}

// The same, with f8e4m3 too.
template <class Body>
void with_weight_type(DType dtype, const Body& body) {
  if (dtype == DType::kF8E4M3) return body(F8E4M3{});
  with_float_type(dtype, body);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The grid of an operation on rows x items: threads.x and blocks.y run along a row, threads.y and
// blocks.x over rows. A thread has one row, and loops over its items only where a row is absurd.
struct RowGrid : Grid {
  static constexpr int64_t kThreads = 256;
  static constexpr int64_t kMaxBlocksY = 65535;

  RowGrid(int64_t rows, int64_t items) {
    const int64_t x = std::min(kThreads, ceil_div(items, 32) * 32);
    const int64_t y = std::max<int64_t>(1, kThreads / x);
    threads = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
    blocks = dim3(static_cast<unsigned>(ceil_div(rows, y)),
                  static_cast<unsigned>(std::min(kMaxBlocksY, ceil_div(items, x))));
  }
};

// The thread's place in a RowGrid.
__device__ __forceinline__ int64_t grid_row() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}
__device__ __forceinline__ int64_t grid_item() {
  return static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t grid_item_step() {
  return static_cast<int64_t>(gridDim.y) * blockDim.x;
}

}  // namespace loza::cuda
