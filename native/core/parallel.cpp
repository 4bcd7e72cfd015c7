#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

namespace loza {

namespace {

// Helpers look for the next job this long before they sleep: a decode step enqueues one small
// operation right after the other, and waking a sleeping thread costs more than the operation.
constexpr auto kSpinTime = std::chrono::microseconds(40);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct ThreadPool::Job {
  Job(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body)
      : count(count), grain(grain), body(body) {}

  int64_t count;
  int64_t grain;
  const std::function<void(int64_t, int64_t)>& body;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::exception_ptr error;
};

ThreadPool*& current_pool() {
  static thread_local ThreadPool* pool = nullptr;
  return pool;
}

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_++;
  }
  wake_.notify_all();
  for (auto& helper : helpers_) helper.join();
}

void ThreadPool::run(int64_t count, int64_t grain,
                     const std::function<void(int64_t, int64_t)>& body) {
  Job job(count, grain, body);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = &job;
    generation_++;
  }
  wake_.notify_all();
  work(job);
  // No helper may enter any more; wait for those inside, because the job lives on this stack.
  {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = nullptr;
  }
  while (inside_.load(std::memory_order_acquire) != 0) pause();
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::work(Job& job) {
  while (!job.failed.load(std::memory_order_relaxed)) {
    const int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
    if (begin >= job.count) return;
    try {
      job.body(begin, std::min(begin + job.grain, job.count));
    } catch (...) {
      std::lock_guard<std::mutex> lock(job.mutex);
      if (!job.error) job.error = std::current_exception();
      job.failed = true;
    }
  }
}

void ThreadPool::help() {
  uint64_t seen = 0;
  while (true) {
    const auto give_up = std::chrono::steady_clock::now() + kSpinTime;
    while (generation_.load(std::memory_order_acquire) == seen &&
           std::chrono::steady_clock::now() < give_up)
      pause();
    Job* job = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      if (stopping_) return;
      job = job_.load();
      if (job != nullptr) inside_++;
    }
    if (job == nullptr) continue;
    work(*job);
    inside_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace loza
