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

void Uploader::copy(std::byte* to, const std::shared_ptr<const MappedFile>& file, size_t from,
                    size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(kMaxSlotBytes, bytes - done);
    auto transfer = std::make_shared<Transfer>(Transfer{.to = to + done,
                                                        .file = file,
                                                        .from = from + done,
                                                        .bytes = part,
                                                        .slot = take_slot(part),
                                                        .unread = part});
    enqueue(std::move(transfer));
    done += part;
  }
}

// A slot that was sent, or else a new one, or else the one that will be sent first.
std::unique_ptr<Uploader::Slot> Uploader::take_slot(size_t bytes) {
  std::unique_ptr<Slot> slot;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool sent = !slots_.empty() && slots_.front()->sent.passed();
    if (sent || made_ == kMaxSlots) {
      idle_.wait(lock, [this] { return !slots_.empty(); });
      slot = std::move(slots_.front());
      slots_.pop_front();
    } else {
      made_++;
    }
  }
  try {
    if (slot != nullptr) check(slot->sent.wait(), "upload");
    if (slot == nullptr || slot->bytes < bytes) {
      slot.reset();
      slot = std::make_unique<Slot>(std::max(std::bit_ceil(bytes), kMinSlotBytes));
    }
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    made_--;
    throw;
  }
  return slot;
}

void Uploader::enqueue(std::shared_ptr<Transfer> transfer) {
  const size_t bytes = transfer->bytes;
  const std::lock_guard<std::mutex> lock(mutex_);
  unsent_++;
  for (size_t offset = 0; offset < bytes; offset += kPieceBytes)
    pieces_.push_back({transfer, offset, std::min(kPieceBytes, bytes - offset)});
  const auto most = static_cast<size_t>(std::min(available_cores(), kMaxReaders));
  while (readers_.size() < std::min(pieces_.size(), most))
    readers_.emplace_back([this] { read_pieces(); });
  wake_.notify_all();
}

// The thread that reads a transfer's last piece sends it.
void Uploader::read_pieces() {
  make_current_quietly();
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !pieces_.empty(); });
    if (stopping_) return;
    const Piece piece = std::move(pieces_.front());
    pieces_.pop_front();
    lock.unlock();
    std::optional<Error> error = read(piece);
    lock.lock();
    Transfer& transfer = *piece.transfer;
    transfer.failed |= error.has_value();
    if (!error_) error_ = std::move(error);
    transfer.unread -= piece.bytes;
    if (transfer.unread > 0) continue;
    lock.unlock();
    send(transfer);
    lock.lock();
  }
}

std::optional<Error> Uploader::read(const Piece& piece) {
  const Transfer& transfer = *piece.transfer;
  try {
    transfer.file->read(transfer.from + piece.offset, transfer.slot->memory.data() + piece.offset,
                        piece.bytes);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(code::kInternal, error.what());
  }
}

void Uploader::send(Transfer& transfer) {
  std::optional<Error> error;
  try {
    if (!transfer.failed) {
      check(cudaMemcpyAsync(transfer.to, transfer.slot->memory.data(), transfer.bytes,
                            cudaMemcpyHostToDevice, stream_),
            "upload");
      transfer.slot->sent.record(stream_);
    }
  } catch (const Error& thrown) {
    error = thrown;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::move(error);
    transfer.file.reset();
    slots_.push_back(std::move(transfer.slot));
    unsent_--;
  }
  idle_.notify_all();
}

void Uploader::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return unsent_ == 0; });
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
    pieces_.clear();
  }
  wake_.notify_all();
  for (std::thread& reader : std::exchange(readers_, {})) reader.join();
}

}  // namespace loza::cuda
