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
  int32_t add(const Tensor& tensor, BufferPtr owner);
  const Tensor& get(int32_t handle) const { return entry(handle).tensor; }
  BufferPtr owner(int32_t handle) const { return entry(handle).owner; }
  BufferPtr remove(int32_t handle);
  void clear();

 private:
  static constexpr int kIndexBits = 20;
  static constexpr int32_t kIndexMask = (1 << kIndexBits) - 1;
  static constexpr int32_t kGenerationMask = (1 << (31 - kIndexBits)) - 1;

  struct Entry {
    Tensor tensor;
    BufferPtr owner;
    int32_t generation = 0;
    bool live = false;
  };
  const Entry& entry(int32_t handle) const;

  std::vector<Entry> entries_ = std::vector<Entry>(1);  // handle 0 means "no tensor"
  std::vector<int32_t> free_;
};

}  // namespace loza::addon
