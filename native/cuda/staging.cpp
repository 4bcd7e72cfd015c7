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

Uploader::Uploader() : readers_(std::min(available_cores(), 8)) {}

void Uploader::copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  for (size_t done = 0; done < bytes;) {
    const size_t piece = std::min(kHalfBytes, bytes - done);
    Half& half = halves_[next_];
    next_ = 1 - next_;
    check(half.sent.wait(), "upload");
    readers_.run(static_cast<int64_t>(piece), int64_t{1} << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(half.memory.data() + begin, source + done + begin,
                  static_cast<size_t>(end - begin));
    });
    check(cudaMemcpyAsync(target + done, half.memory.data(), piece, cudaMemcpyHostToDevice, stream),
          "upload");
    half.sent.record(stream);
    done += piece;
  }
}

}  // namespace loza::cuda
