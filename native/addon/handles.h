// Tensors cross the boundary as integers: a place in this table and a generation, so that a stale
// handle is an error and never a wild pointer.
#pragma once

#include <cstdint>
#include <vector>

#include "core/memory.h"
#include "core/tensor.h"

namespace loza::addon {

class TensorTable {
 public:
  // `owner` keeps the memory alive; null for arena tensors, whose arena does.
  int64_t add(const Tensor& tensor, BufferPtr owner);
  const Tensor& get(int64_t handle) const { return entry(handle).tensor; }
  BufferPtr owner(int64_t handle) const { return entry(handle).owner; }
  BufferPtr remove(int64_t handle);
  void clear();

 private:
  static constexpr int kIndexBits = 20;
  static constexpr int64_t kIndexMask = (int64_t{1} << kIndexBits) - 1;
  // A JavaScript number holds 53 bits: a place would have to be reused 2^33 times to be mistaken.
  static constexpr int64_t kGenerationMask = (int64_t{1} << (53 - kIndexBits)) - 1;

  struct Entry {
    Tensor tensor;
    BufferPtr owner;
    int64_t generation = 0;
    bool live = false;
  };
  const Entry& entry(int64_t handle) const;

  std::vector<Entry> entries_ = std::vector<Entry>(1);  // handle 0 means "no tensor"
  std::vector<int64_t> free_;
};

}  // namespace loza::addon
