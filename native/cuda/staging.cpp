#include "cuda/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>

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

void Uploader::copy(void* to, const MappedFile& file, size_t from, size_t bytes,
                    cudaStream_t stream) {
  auto* target = static_cast<std::byte*>(to);
  if (bytes <= kSlotBytes) return send(target, file, from, bytes, stream);
  if (!readers_) readers_.emplace(std::min(available_cores(), kMaxReaders));
  readers_->run(static_cast<int64_t>(bytes), kSlotBytes, [&](int64_t begin, int64_t end) {
    make_current_quietly();
    send(target + begin, file, from + static_cast<size_t>(begin), static_cast<size_t>(end - begin),
         stream);
  });
}

void Uploader::send(std::byte* to, const MappedFile& file, size_t from, size_t bytes,
                    cudaStream_t stream) {
  std::unique_ptr<Slot> slot = take();
  try {
    check(slot->sent.wait(), "upload");
    file.read(from, slot->memory.data(), bytes);
    check(cudaMemcpyAsync(to, slot->memory.data(), bytes, cudaMemcpyHostToDevice, stream),
          "upload");
    slot->sent.record(stream);
  } catch (...) {
    give_back(std::move(slot));
    throw;
  }
  give_back(std::move(slot));
}

// A slot that was sent, or else a new one, or else the one that will be sent first. There are more
// slots than readers, so one is left.
std::unique_ptr<Uploader::Slot> Uploader::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
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
  const std::lock_guard<std::mutex> lock(mutex_);
  slots_.push_back(std::move(slot));
}

}  // namespace loza::cuda
