// Tensor: a view of typed memory. It owns nothing; whoever hands it out keeps the memory alive.
#pragma once

#include <array>
#include <cstdint>
#include <ostream>

#include "core/error.h"

namespace loza {

enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF8E4M3 = 2, kI32 = 3 };

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kF8E4M3:
      return 1;
  }
  fail(code::kInternal, "unknown dtype ", static_cast<int32_t>(dtype));
}

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3:
      return "f8e4m3";
    case DType::kI32:
      return "i32";
  }
  return "?";
}

struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;  // null: an absent optional tensor
  DType dtype = DType::kF32;
  int32_t rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};  // in elements

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[i < 0 ? rank + i : i]; }
  int64_t stride(int i) const { return strides[i < 0 ? rank + i : i]; }

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank; i++) count *= shape[i];
    return count;
  }
  int64_t bytes() const { return elements() * size_of(dtype); }

  bool contiguous() const {
    if (elements() == 0) return true;
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; i--) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  // Of the last dimension, from `begin` to before `end`.
  Tensor columns(int64_t begin, int64_t end) const {
    Tensor part = *this;
    part.data = static_cast<char*>(data) + begin * stride(-1) * size_of(dtype);
    part.shape[rank - 1] = end - begin;
    return part;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

inline std::ostream& operator<<(std::ostream& out, const Tensor& tensor) {
  if (!tensor) return out << "no tensor";
  out << name_of(tensor.dtype) << '[';
  for (int i = 0; i < tensor.rank; i++) out << (i ? ", " : "") << tensor.shape[i];
  return out << ']';
}

// Checks dtype and shape; -1 accepts any extent. The last dimension must be contiguous.
template <class... Dims>
void expect(const char* name, const Tensor& tensor, DType dtype, Dims... dims) {
  const std::array<int64_t, sizeof...(Dims)> wanted{static_cast<int64_t>(dims)...};
  bool same = tensor && tensor.dtype == dtype && tensor.rank == static_cast<int>(wanted.size());
  for (size_t i = 0; same && i < wanted.size(); i++)
    same = wanted[i] < 0 || wanted[i] == tensor.shape[i];
  if (same && tensor.rank > 0 && tensor.dim(-1) > 1) same = tensor.stride(-1) == 1;
  if (same) return;
  std::ostringstream shape;
  for (size_t i = 0; i < wanted.size(); i++) shape << (i ? ", " : "") << wanted[i];
  fail(code::kInternal, name, ": expected ", name_of(dtype), '[', shape.str(), "], got ", tensor);
}

// Like expect, for weights: f32, bf16 or f8e4m3.
inline void expect_weight(const char* name, const Tensor& weight, int rank) {
  check(weight && weight.rank == rank && weight.dtype != DType::kI32, name,
        ": expected a weight of rank ", rank, ", got ", weight);
}

}  // namespace loza
