// The CPU's stream: one worker thread that drains a ring of commands, each of which may use all
// cores through parallel_for.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "core/command.h"
#include "core/parallel.h"
#include "core/stream.h"

namespace loza {

class CpuGraph final : public Graph {
 public:
  std::vector<Command> commands;
};

class CpuStream final : public Stream {
 public:
  explicit CpuStream(int threads);
  ~CpuStream() override;

  void enqueue(Command command);

  Ops& ops() override { return *ops_; }
  void write(const Tensor& to, const void* from, size_t bytes) override;
  void upload(const Tensor& to, const Tensor& from,
              const std::shared_ptr<const MappedFile>& file) override;
  void read(const Tensor& from, void* to) override;
  void on_complete(Completion completion) override;
  void keep_until_here(BufferPtr buffer) override;
  void begin_graph() override;
  std::shared_ptr<Graph> end_graph() override;
  void launch(const std::shared_ptr<Graph>& graph) override;
  void close() override;

 private:
  struct Item {
    Command work;           // skipped after a failure
    Completion completion;  // never skipped
  };

  // A queue that keeps its storage, so that enqueueing allocates nothing in steady state.
  class Ring {
   public:
    bool empty() const { return count_ == 0; }
    void push(Item item);
    Item pop();

   private:
    std::vector<Item> items_ = std::vector<Item>(256);  // size is a power of two
    size_t head_ = 0;
    size_t count_ = 0;
  };

  void push(Item item);
  void drain(int threads);
  void execute(Item& item);

  std::unique_ptr<Ops> ops_;
  std::shared_ptr<CpuGraph> recording_;

  std::mutex mutex_;
  std::condition_variable wake_;
  Ring queue_;
  bool closed_ = false;

  std::optional<Error> error_;  // first failure not yet reported; worker thread only
  std::thread worker_;          // last: starts when all else is ready
};

}  // namespace loza
