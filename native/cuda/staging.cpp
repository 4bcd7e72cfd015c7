#include "cuda/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "cuda/check.h"
#include "cuda/context.h"

namespace loza::cuda {

Pinned::Pinned(size_t bytes) {
  void* data = nullptr;
  const cudaError_t result = cudaMallocHost(&data, bytes);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(code::kOutOfMemory, "the host could not give ", bytes,
         " bytes of pinned memory for copies to and from the GPU");
  }
  check(result, "cudaMallocHost");
  data_ = static_cast<std::byte*>(data);
}

Pinned::~Pinned() {
  make_current_quietly();
  if (cudaFreeHost(data_) != cudaSuccess) cudaGetLastError();
}

Event::Event() {
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync),
        "cudaEventCreate");
}

Event::~Event() {
  if (cudaEventDestroy(event_) != cudaSuccess) cudaGetLastError();
}

void Event::record(cudaStream_t stream) {
  check(cudaEventRecord(event_, stream), "cudaEventRecord");
}

std::shared_ptr<std::byte> PinnedPool::take(size_t bytes) {
  return bytes <= kMaxSmallBytes ? take_small(std::max(std::bit_ceil(bytes), kMinBytes))
                                 : take_large((bytes + kLargeStep - 1) / kLargeStep * kLargeStep);
}

std::shared_ptr<std::byte> PinnedPool::take_small(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::byte*>& unused = small_[bytes];
  if (unused.empty()) {
    slabs_.push_back(std::make_unique<Pinned>(kSlabBytes));
    for (size_t offset = 0; offset < kSlabBytes; offset += bytes)
      unused.push_back(slabs_.back()->data() + offset);
  }
  std::byte* const block = unused.back();
  unused.pop_back();
  return {block, [self = shared_from_this(), bytes](std::byte* given) {
            const std::lock_guard<std::mutex> lock(self->mutex_);
            self->small_[bytes].push_back(given);
          }};
}

std::shared_ptr<std::byte> PinnedPool::take_large(size_t bytes) {
  std::unique_ptr<Pinned> block;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& unused = large_[bytes];
    if (!unused.empty()) {
      block = std::move(unused.back());
      unused.pop_back();
      kept_bytes_ -= bytes;
    }
  }
  if (block == nullptr) block = std::make_unique<Pinned>(bytes);
  std::byte* const data = block->data();
  return {data, [self = shared_from_this(), bytes, owned = block.release()](std::byte*) {
            std::unique_ptr<Pinned> given(owned);  // freed here unless it is kept
            const std::lock_guard<std::mutex> lock(self->mutex_);
            if (self->kept_bytes_ + bytes > kMaxKeptBytes) return;
            self->kept_bytes_ += bytes;
            self->large_[bytes].push_back(std::move(given));
          }};
}

void WriteRing::copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  std::byte* const staged = reserve(bytes, stream);
  std::memcpy(staged, from, bytes);
  check(cudaMemcpyAsync(to, staged, bytes, cudaMemcpyHostToDevice, stream), "write");
}

std::byte* WriteRing::reserve(size_t bytes, cudaStream_t stream) {
  if (used_ + bytes > kSegmentBytes) {
    passed_[segment_].record(stream);
    segment_ = (segment_ + 1) % kSegments;
    used_ = 0;
    check(passed_[segment_].wait(), "write");
  }
  std::byte* const place = memory_.data() + segment_ * kSegmentBytes + used_;
  used_ += (bytes + 63) / 64 * 64;
  return place;
}

void Uploader::copy(std::byte* to, std::shared_ptr<const MappedFile> file, size_t from,
                    size_t bytes) {
  if (bytes <= kSlotBytes) return send({to, std::move(file), from, bytes});
  const size_t count = (bytes + kSlotBytes - 1) / kSlotBytes;
  const auto most = static_cast<size_t>(std::min(available_cores(), kMaxReaders));
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t done = 0; done < bytes; done += kSlotBytes)
    pieces_.push_back({to + done, file, from + done, std::min(kSlotBytes, bytes - done)});
  unfinished_ += count;
  while (readers_.size() < std::min(unfinished_, most))
    readers_.emplace_back([this] { read_pieces(); });
  wake_.notify_all();
}

void Uploader::read_pieces() {
  make_current_quietly();
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !pieces_.empty(); });
    if (stopping_) return;
    const Piece piece = std::move(pieces_.front());
    pieces_.pop_front();
    const bool failed = error_.has_value();
    lock.unlock();
    std::optional<Error> error;
    try {
      if (!failed) send(piece);
    } catch (const Error& thrown) {
      error = thrown;
    } catch (const std::exception& thrown) {
      error = Error(code::kInternal, thrown.what());
    }
    lock.lock();
    if (!error_) error_ = std::move(error);
    if (--unfinished_ == 0) idle_.notify_all();
  }
}

void Uploader::send(const Piece& piece) {
  std::unique_ptr<Slot> slot = take_slot();
  try {
    check(slot->sent.wait(), "upload");
    piece.file->read(piece.from, slot->memory.data(), piece.bytes);
    check(cudaMemcpyAsync(piece.to, slot->memory.data(), piece.bytes, cudaMemcpyHostToDevice,
                          stream_),
          "upload");
    slot->sent.record(stream_);
  } catch (...) {
    give_back(std::move(slot));
    throw;
  }
  give_back(std::move(slot));
}

// A slot that was sent, or else a new one, or else the one that will be sent first. There are more
// slots than threads, so one is left.
std::unique_ptr<Uploader::Slot> Uploader::take_slot() {
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  if (made_ < kMaxSlots && (slots_.empty() || !slots_.front()->sent.passed())) {
    auto slot = std::make_unique<Slot>();
    made_++;
    return slot;
  }
  std::unique_ptr<Slot> slot = std::move(slots_.front());
  slots_.pop_front();
  return slot;
}

void Uploader::give_back(std::unique_ptr<Slot> slot) {
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  slots_.push_back(std::move(slot));
}

void Uploader::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return unfinished_ == 0; });
}

void Uploader::flush() {
  wait();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto error = std::exchange(error_, std::nullopt)) throw *error;
}

void Uploader::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    unfinished_ -= pieces_.size();
    pieces_.clear();
  }
  wake_.notify_all();
  for (std::thread& reader : std::exchange(readers_, {})) reader.join();
}

}  // namespace loza::cuda
