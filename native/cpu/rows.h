// What the light operations share: a loop over rows, checks of their tensors, small helpers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/simd.h"

namespace loza::cpu {

// Elements a thread should get at least: below this, waking another one costs more than it saves.
inline constexpr int64_t kElementsPerChunk = 16384;

// body(row) for every row, in parallel when there is enough work. `width`: elements of work a row.
template <class Body>
void for_each_row(int64_t rows, int64_t width, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, width));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) body(row);
  });
}

// out = in, widened to fp32.
template <class T>
LOZA_MULTIVERSION void widen_row(float* out, const T* in, int64_t width) {
  for (int64_t i = 0; i < width; i++) out[i] = widen(in[i]);
}

// Like expect, for the two formats activations and caches are kept in.
template <class... Dims>
void expect_float(const char* name, const Tensor& tensor, Dims... dims) {
  const bool bf16 = tensor && tensor.dtype == DType::kBF16;
  expect(name, tensor, bf16 ? DType::kBF16 : DType::kF32, dims...);
}

// The `capacity` largest values seen, largest first. Offered in ascending id order, ties go to the
// lower id. NaN counts as -inf, so that there are always enough distinct ids.
class TopList {
 public:
  struct Entry {
    float value;
    int32_t id;
  };

  // Starts anew; memory is kept.
  void reset(int64_t capacity) {
    capacity_ = capacity;
    entries_.clear();
    entries_.reserve(capacity + 1);
  }

  const std::vector<Entry>& entries() const { return entries_; }

  void offer(float value, int32_t id) {
    if (full() && !(value > entries_.back().value)) return;
    if (std::isnan(value)) value = -INFINITY;
    const auto later = [](const Entry& entry, float wanted) { return entry.value >= wanted; };
    entries_.insert(std::lower_bound(entries_.begin(), entries_.end(), value, later), {value, id});
    if (static_cast<int64_t>(entries_.size()) > capacity_) entries_.pop_back();
  }

 private:
  bool full() const { return static_cast<int64_t>(entries_.size()) == capacity_; }

  int64_t capacity_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace loza::cpu
