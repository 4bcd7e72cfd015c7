#include "core/memory.h"

#include <algorithm>
#include <utility>

#include "core/device.h"

namespace loza {

namespace {

constexpr size_t kAlignment = 256;  // also what bulk tensor copies on a GPU want
constexpr size_t kMinSlabBytes = 1u << 20;
constexpr int64_t kMaxBytes = int64_t{1} << 46;

size_t align_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void MemoryAccount::add(Purpose purpose, int64_t bytes) {
  bytes_[static_cast<int>(purpose)] += bytes;
  if (purpose == Purpose::kHost) return;
  const int64_t total = total_ += bytes;
  int64_t peak = peak_.load();
  while (total > peak && !peak_.compare_exchange_weak(peak, total)) {
  }
}

bool MemoryAccount::injected_failure() {
  if (fail_after_ < 0) return false;
  if (fail_after_-- > 0) return false;
  fail_after_ = -1;
  return true;
}

Tensor contiguous_view(void* data, DType dtype, int rank, const int64_t* shape) {
  if (rank < 0 || rank > Tensor::kMaxRank)
    fail(code::kInvalidArg, "a tensor has at most ", Tensor::kMaxRank, " dimensions, got ", rank);
  Tensor tensor{.data = data, .dtype = dtype, .rank = rank};
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; i--) {
    if (shape[i] < 0) fail(code::kInvalidArg, "a dimension must not be negative, got ", shape[i]);
    tensor.shape[i] = shape[i];
    tensor.strides[i] = stride;
    if (__builtin_mul_overflow(stride, std::max<int64_t>(shape[i], 1), &stride) ||
        stride > kMaxBytes)
      fail(code::kInvalidArg, "a tensor of more than 2^46 elements");
  }
  return tensor;
}

Tensor Arena::allocate(DType dtype, int rank, const int64_t* shape) {
  Tensor tensor = contiguous_view(nullptr, dtype, rank, shape);
  tensor.data = bump(align_up(static_cast<size_t>(std::max<int64_t>(tensor.bytes(), 1))));
  return tensor;
}

std::byte* Arena::bump(size_t bytes) {
  for (Mark at = position_; at.slab < slabs_.size(); at = {at.slab + 1, 0}) {
    Buffer& slab = *slabs_[at.slab];
    if (at.offset + bytes > slab.bytes()) continue;
    position_ = {at.slab, at.offset + bytes};
    return slab.data() + at.offset;
  }
  // Doubling keeps the number of slabs small; the tail that is left unused above is bounded by it.
  const size_t last = slabs_.empty() ? kMinSlabBytes / 2 : slabs_.back()->bytes();
  slabs_.push_back(device_.allocate(std::max(bytes, last * 2), Purpose::kWorkspace));
  position_ = {slabs_.size() - 1, bytes};
  return slabs_.back()->data();
}

std::vector<BufferPtr> Arena::take_slabs() {
  position_ = {};
  return std::exchange(slabs_, {});
}

}  // namespace loza
