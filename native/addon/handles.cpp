#include "addon/handles.h"

#include <utility>

namespace loza::addon {

int64_t TensorTable::add(const Tensor& tensor, BufferPtr owner) {
  int64_t index;
  if (free_.empty()) {
    index = static_cast<int64_t>(entries_.size());
    check(index <= kIndexMask, "more than ", kIndexMask, " tensors on one device");
    entries_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Entry& entry = entries_[index];
  entry.tensor = tensor;
  entry.owner = std::move(owner);
  entry.live = true;
  return entry.generation << kIndexBits | index;
}

const TensorTable::Entry& TensorTable::entry(int64_t handle) const {
  const auto index = static_cast<size_t>(handle & kIndexMask);
  if (handle <= 0 || index >= entries_.size() || !entries_[index].live ||
      entries_[index].generation != handle >> kIndexBits)
    fail(code::kClosed, "tensor ", handle, " was released");
  return entries_[index];
}

BufferPtr TensorTable::remove(int64_t handle) {
  auto& gone = const_cast<Entry&>(entry(handle));
  gone.live = false;
  gone.generation = (gone.generation + 1) & kGenerationMask;
  free_.push_back(handle & kIndexMask);
  return std::exchange(gone.owner, nullptr);
}

void TensorTable::clear() {
  for (size_t index = 1; index < entries_.size(); index++)
    if (entries_[index].live)
      remove(entries_[index].generation << kIndexBits | static_cast<int64_t>(index));
}

}  // namespace loza::addon
