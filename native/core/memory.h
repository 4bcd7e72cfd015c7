// Memory of one device: accounted buffers by purpose, and the arena of a step's activations.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace loza {

enum class Purpose : int32_t {
  kWeights = 0,
  kMappedWeights = 1,
  kKv = 2,
  kWorkspace = 3,
  kHost = 4,  // the host's memory, which operations of the device can read and write
};
inline constexpr int kPurposes = 5;

// Counts what is allocated, by purpose. One per device; outlives its buffers.
class MemoryAccount {
 public:
  void add(Purpose purpose, int64_t bytes);
  int64_t bytes(Purpose purpose) const { return bytes_[static_cast<int>(purpose)]; }
  // The largest sum there was, without the host's.
  int64_t peak() const { return peak_; }

  // Fault injection for tests: the allocation after `after` more successful ones fails. -1: never.
  void fail_allocation_after(int64_t after) { fail_after_ = after; }
  bool injected_failure();

 private:
  std::array<std::atomic<int64_t>, kPurposes> bytes_{};
  std::atomic<int64_t> total_{0};
  std::atomic<int64_t> peak_{0};
  std::atomic<int64_t> fail_after_{-1};
};

// Memory that is freed when the last owner lets go. Each backend derives its own.
class Buffer {
 public:
  Buffer(std::shared_ptr<MemoryAccount> account, Purpose purpose, size_t bytes)
      : account_(std::move(account)), purpose_(purpose), bytes_(bytes) {}
  virtual ~Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 protected:
  std::shared_ptr<MemoryAccount> account_;
  Purpose purpose_;
  size_t bytes_;
  std::byte* data_ = nullptr;
};

using BufferPtr = std::shared_ptr<Buffer>;

class Device;

// A bump allocator over slabs. `release(mark)` takes back all that was allocated since `mark()`;
// work already enqueued may still use that memory, because whatever reuses it is enqueued later on
// the same stream. Once a step has seen its largest batch, steps allocate nothing and addresses
// repeat.
class Arena {
 public:
  explicit Arena(Device& device) : device_(device) {}

  struct Mark {
    size_t slab = 0;
    size_t offset = 0;
  };

  Tensor allocate(DType dtype, int rank, const int64_t* shape);
  Mark mark() const { return position_; }
  void release(Mark mark) { position_ = mark; }
  std::vector<BufferPtr> take_slabs();  // for freeing in stream order

 private:
  std::byte* bump(size_t bytes);

  Device& device_;
  std::vector<BufferPtr> slabs_;
  Mark position_;
};

// Row-major strides for a shape; throws ERR_LOZA_INVALID_ARG on negative or overflowing extents.
Tensor contiguous_view(void* data, DType dtype, int rank, const int64_t* shape);

}  // namespace loza
