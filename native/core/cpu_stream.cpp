#include "core/cpu_stream.h"

#include <cstring>

#include "ops/cpu_ops.h"

namespace loza {

namespace {

// What a worker thread caught, as this project's error.
Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(code::kOutOfMemory, "an operation could not get scratch memory");
  } catch (const std::exception& error) {
    return Error(code::kInternal, error.what());
  } catch (...) {
    return Error(code::kInternal, "an operation failed without saying why");
  }
}

}  // namespace

void CpuStream::Ring::push(Item item) {
  if (count_ == items_.size()) {
    std::vector<Item> larger(items_.size() * 2);
    for (size_t i = 0; i < count_; i++)
      larger[i] = std::move(items_[(head_ + i) & (items_.size() - 1)]);
    items_ = std::move(larger);
    head_ = 0;
  }
  items_[(head_ + count_++) & (items_.size() - 1)] = std::move(item);
}

CpuStream::Item CpuStream::Ring::pop() {
  Item item = std::move(items_[head_]);
  head_ = (head_ + 1) & (items_.size() - 1);
  count_--;
  return item;
}

CpuStream::CpuStream(int threads)
    : ops_(std::make_unique<CpuOps>(*this)), worker_([this, threads] { drain(threads); }) {}

CpuStream::~CpuStream() { close(); }

void CpuStream::enqueue(Command command) {
  if (recording_) {
    recording_->commands.push_back(std::move(command));
    return;
  }
  push({.work = std::move(command), .completion = nullptr});
}

void CpuStream::push(Item item) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) fail(code::kClosed, "the stream is closed");
    queue_.push(std::move(item));
  }
  wake_.notify_one();
}

void CpuStream::drain(int threads) {
  ThreadPool pool(threads);
  current_pool() = &pool;
  while (true) {
    Item item;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return;
      item = queue_.pop();
      if (closed_ && !error_) error_ = Error(code::kClosed, "the stream was closed");
    }
    execute(item);
  }
}

void CpuStream::execute(Item& item) {
  if (item.completion) {
    item.completion(std::exchange(error_, std::nullopt));
    return;
  }
  if (error_) return;
  try {
    item.work();
  } catch (...) {
    error_ = current_error();
  }
}

void CpuStream::write(const Tensor& to, const void* from, size_t bytes) {
  check(to.contiguous() && static_cast<size_t>(to.bytes()) == bytes, "write: ", bytes,
        " bytes do not fill ", to);
  // Small writes (a step's tokens, tables, positions) travel inside the command.
  struct Small {
    void* target;
    size_t bytes;
    std::array<std::byte, Command::kCapacity - 2 * sizeof(void*)> data;
  };
  if (bytes <= sizeof(Small::data)) {
    Small small;
    small.target = to.data;
    small.bytes = bytes;
    std::memcpy(small.data.data(), from, bytes);
    enqueue([small] { std::memcpy(small.target, small.data.data(), small.bytes); });
    return;
  }
  const auto* source = static_cast<const std::byte*>(from);
  auto copy = std::make_shared<std::vector<std::byte>>(source, source + bytes);
  enqueue([target = to.data, copy] { std::memcpy(target, copy->data(), copy->size()); });
}

void CpuStream::upload(const Tensor& to, const Tensor& from,
                       const std::shared_ptr<const MappedFile>&) {
  check(to.contiguous() && from.contiguous() && to.bytes() == from.bytes(), "upload: ", from,
        " does not fill ", to);
  enqueue([to, from] {
    constexpr int64_t kChunk = 1 << 18;
    parallel_for(to.bytes(), kChunk, [&](int64_t begin, int64_t end) {
      std::memcpy(to.as<std::byte>() + begin, from.as<std::byte>() + begin,
                  static_cast<size_t>(end - begin));
    });
  });
}

void CpuStream::read(const Tensor& from, void* to) {
  check(from.contiguous(), "read: ", from, " is not contiguous");
  check(!recording_, "read: not while a graph is recorded");
  enqueue([from, to] { std::memcpy(to, from.data, static_cast<size_t>(from.bytes())); });
}

void CpuStream::on_complete(Completion completion) {
  check(!recording_, "on_complete: not while a graph is recorded");
  push({.work = {}, .completion = std::move(completion)});
}

void CpuStream::keep_until_here(BufferPtr buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  // A closed stream runs nothing more: its last operation ends before its worker does, so the
  // buffer only has to outlive that one; the queue still takes it.
  queue_.push({.work = [buffer = std::move(buffer)] {}, .completion = nullptr});
  wake_.notify_one();
}

void CpuStream::begin_graph() {
  check(!recording_, "begin_graph: a graph is being recorded already");
  recording_ = std::make_shared<CpuGraph>();
}

std::shared_ptr<Graph> CpuStream::end_graph() {
  check(recording_ != nullptr, "end_graph: no graph is being recorded");
  return std::exchange(recording_, nullptr);
}

void CpuStream::launch(const std::shared_ptr<Graph>& graph) {
  auto recorded = std::dynamic_pointer_cast<CpuGraph>(graph);
  check(recorded != nullptr, "launch: this graph belongs to another backend");
  enqueue([recorded] {
    for (Command& command : recorded->commands) command();
  });
}

void CpuStream::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  wake_.notify_one();
  if (worker_.joinable()) worker_.join();
}

}  // namespace loza
