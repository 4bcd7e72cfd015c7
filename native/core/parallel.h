// parallel_for: the only threading that CPU operations know.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace loza {

// Threads that help one stream's worker. `run` returns when every index was processed.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls body(begin, end) for chunks of at most `grain` that cover [0, count). Chunks may run on
  // any thread in any order. The first exception of a chunk is thrown here.
  void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  struct Job;
  void help();
  void work(Job& job);

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<Job*> job_{nullptr};
  std::atomic<int> inside_{0};
  std::atomic<bool> stopping_{false};
};

// The pool of the stream whose worker runs this thread; null elsewhere.
ThreadPool*& current_pool();

// Cores this process may use (its affinity mask, not the machine's count).
int available_cores();

// body(begin, end) over [0, count) on all cores; on this thread alone when there is too little work.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  ThreadPool* pool = current_pool();
  if (pool == nullptr || pool->threads() == 1 || count <= grain) return body(0, count);
  pool->run(count, grain, std::cref(body));
}

}  // namespace loza
