#include "cuda/waiter.h"

#include <cstring>
#include <utility>

#include "cuda/check.h"
#include "cuda/context.h"

namespace loza::cuda {

Waiter::Waiter() : thread_([this] { run(); }) {}

Waiter::~Waiter() {
  stop();
  for (cudaEvent_t event : events_)
    if (cudaEventDestroy(event) != cudaSuccess) cudaGetLastError();
}

void Waiter::after(cudaStream_t stream, Item item) {
  Entry entry{.item = std::move(item), .passed = nullptr, .error = std::nullopt};
  try {
    entry.passed = take_event();
    check(cudaEventRecord(entry.passed, stream), "cudaEventRecord");
  } catch (const Error& error) {
    entry.error = error;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(entry));
  }
  wake_.notify_one();
}

cudaEvent_t Waiter::take_event() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!events_.empty()) {
      cudaEvent_t event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
        "cudaEventCreate");
  return event;
}

void Waiter::run() {
  make_current_quietly();
  while (true) {
    Entry entry;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      entry = std::move(queue_.front());
      queue_.pop_front();
    }
    finish(entry);
  }
}

void Waiter::finish(Entry& entry) {
  auto& [item, passed, error] = entry;
  const auto note = [this](std::optional<Error> failure) {
    if (!error_ && failure) error_ = std::move(failure);
  };
  note(std::move(error));
  if (passed != nullptr) {
    const cudaError_t result = cudaEventSynchronize(passed);
    if (result != cudaSuccess) note(to_error(result, "work on the GPU failed"));
  }
  note(lost_context());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (passed != nullptr) events_.push_back(passed);
    if (stopping_) note(Error(code::kClosed, "the stream was closed"));
  }
  if (!error_)
    for (const Arrival& arrival : item.arrivals)
      std::memcpy(arrival.to, arrival.from.get(), arrival.bytes);
  // Before the completion: whoever waits for it may count the memory.
  item.arrivals.clear();
  item.keep.clear();
  if (item.completion) item.completion(std::exchange(error_, std::nullopt));
}

void Waiter::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

}  // namespace loza::cuda
