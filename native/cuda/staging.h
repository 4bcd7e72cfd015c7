// Pinned host memory that copies between the host and the GPU go through, so that they run in stream
// order and nobody waits for them.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/mapped_file.h"

namespace loza::cuda {

// A block of pinned memory of its own.
class Pinned {
 public:
  explicit Pinned(size_t bytes);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

// An event for waiting on, not for timing.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream);
  // Returns at once when nothing was recorded.
  cudaError_t wait() const { return cudaEventSynchronize(event_); }
  bool passed() const { return cudaEventQuery(event_) == cudaSuccess; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Blocks that are used again once their owner lets go of them: what reads arrive in, and what large
// writes leave from. Any thread.
class PinnedPool : public std::enable_shared_from_this<PinnedPool> {
 public:
  std::shared_ptr<std::byte> take(size_t bytes);

 private:
  static constexpr size_t kMinBytes = size_t{4} << 10;
  static constexpr size_t kMaxSmallBytes = size_t{256} << 10;  // parts of a slab, powers of two
  static constexpr size_t kSlabBytes = size_t{2} << 20;
  static constexpr size_t kLargeStep = size_t{2} << 20;
  static constexpr size_t kMaxKeptBytes = size_t{256} << 20;  // large blocks kept for later

  std::shared_ptr<std::byte> take_small(size_t bytes);
  std::shared_ptr<std::byte> take_large(size_t bytes);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Pinned>> slabs_;
  std::map<size_t, std::vector<std::byte*>> small_;
  std::map<size_t, std::vector<std::unique_ptr<Pinned>>> large_;
  size_t kept_bytes_ = 0;
};

// Where small writes leave from: a ring whose segments are fenced by an event each. Waits only when
// the GPU is a whole ring behind.
class WriteRing {
 public:
  static constexpr size_t kMaxBytes = size_t{256} << 10;

  // Copies to the device; `from` may be reused at return.
  void copy(void* to, const void* from, size_t bytes, cudaStream_t stream);

 private:
  static constexpr size_t kSegments = 8;
  static constexpr size_t kSegmentBytes = size_t{1} << 20;

  std::byte* reserve(size_t bytes, cudaStream_t stream);

  Pinned memory_{kSegments * kSegmentBytes};
  std::array<Event, kSegments> passed_;
  size_t segment_ = 0;
  size_t used_ = 0;
};

// Where weights leave from. Threads fill a slot together from the file while others are on their way.
// Reading beats copying from the mapping: no page faults, and no pages that stay mapped in. Slots are
// large, because each transfer costs some 80 us of driver calls, but made as they are needed: a small
// model pins little. One thread calls.
class Uploader {
 public:
  explicit Uploader(cudaStream_t stream) : stream_(stream) {}
  ~Uploader() { stop(); }
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // Bytes of the file from an offset on. What comes behind them on the stream calls `flush` first.
  // Waits for a slot, no longer.
  void copy(std::byte* to, const std::shared_ptr<const MappedFile>& file, size_t from,
            size_t bytes);
  // Returns when every copy was enqueued, and throws if one could not be.
  void flush();
  // The same without the error, which the next flush throws.
  void wait();
  // Drops what was not read yet.
  void stop();

 private:
  static constexpr size_t kMinSlotBytes = size_t{2} << 20;
  static constexpr size_t kMaxSlotBytes = size_t{16} << 20;
  static constexpr size_t kPieceBytes = size_t{1} << 20;
  static constexpr size_t kMaxSlots = 4;
  static constexpr int kMaxReaders = 16;

  struct Slot {
    explicit Slot(size_t bytes) : memory(bytes), bytes(bytes) {}
    Pinned memory;
    size_t bytes;
    Event sent;
  };
  // What one slot takes.
  struct Transfer {
    std::byte* to;
    std::shared_ptr<const MappedFile> file;
    size_t from;
    size_t bytes;
    std::unique_ptr<Slot> slot;
    size_t unread = 0;    // bytes
    bool failed = false;  // some could not be read
  };
  struct Piece {
    std::shared_ptr<Transfer> transfer;
    size_t offset;
    size_t bytes;
  };

  std::unique_ptr<Slot> take_slot(size_t bytes);
  void enqueue(std::shared_ptr<Transfer> transfer);
  void read_pieces();
  std::optional<Error> read(const Piece& piece);
  void send(Transfer& transfer);

  cudaStream_t stream_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::deque<std::unique_ptr<Slot>> slots_;  // not being filled; the longest on its way first
  size_t made_ = 0;
  std::deque<Piece> pieces_;
  size_t unsent_ = 0;  // transfers
  std::optional<Error> error_;
  bool stopping_ = false;
  std::vector<std::thread> readers_;
};

}  // namespace loza::cuda
