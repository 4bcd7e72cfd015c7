// The thread that waits for the GPU on behalf of one stream, so that no JavaScript thread does.
#pragma once

#include <cuda_runtime.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/stream.h"

namespace loza::cuda {

class Waiter {
 public:
  // Bytes that arrive in pinned memory, and where they go from there.
  struct Arrival {
    std::shared_ptr<std::byte> from;
    void* to;
    size_t bytes;
  };
  // What to do once the work enqueued before it is done, in this order.
  struct Item {
    std::vector<Arrival> arrivals;
    std::vector<std::shared_ptr<void>> keep;  // let go of
    Completion completion;                    // may be empty
  };

  Waiter();
  ~Waiter();

  // The stream must not be recording. Never throws what CUDA says: the completion is told.
  void after(cudaStream_t stream, Item item);

  // Waits for what was enqueued; completions that were not called are told ERR_LOZA_CLOSED.
  void stop();

 private:
  struct Entry {
    Item item;
    cudaEvent_t passed = nullptr;  // null: recording it failed
    std::optional<Error> error;    // why
  };

  void run();
  void finish(Entry& entry);
  cudaEvent_t take_event();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Entry> queue_;
  std::vector<cudaEvent_t> events_;  // unused ones
  bool stopping_ = false;

  std::optional<Error> error_;  // first failure not yet reported; waiter thread only
  std::thread thread_;          // last: starts when all else is ready
};

}  // namespace loza::cuda
