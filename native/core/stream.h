// Stream: an ordered queue of work on one device. The same semantics on every backend:
//  - an operation call enqueues and returns at once;
//  - work runs in the order it was enqueued;
//  - when work fails, what was enqueued behind it is skipped until the failure has been reported by
//    `on_complete`; the stream can then be used again.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/error.h"
#include "core/memory.h"
#include "core/tensor.h"

namespace loza {

class MappedFile;
class Ops;

// Recorded work, to be replayed with one call. Tensors it names keep their addresses: what varies
// between replays lives in buffers that are overwritten before a replay.
class Graph {
 public:
  virtual ~Graph() = default;
};

// Called when all work enqueued before has finished; on any thread. The error is the first failure
// since the last report.
using Completion = std::function<void(std::optional<Error> error)>;

class Stream {
 public:
  virtual ~Stream() = default;

  virtual Ops& ops() = 0;

  // Copies `bytes` from host memory into a contiguous tensor. The source may be reused at return.
  virtual void write(const Tensor& to, const void* from, size_t bytes) = 0;
  // Copies bytes of a file, of which `from` is a view and which the caller keeps mapped until this is
  // done. How weights come onto the device.
  virtual void upload(const Tensor& to, const Tensor& from,
                      const std::shared_ptr<const MappedFile>& file) = 0;
  // Copies a contiguous tensor to host memory that must stay alive until the next completion.
  virtual void read(const Tensor& from, void* to) = 0;
  virtual void on_complete(Completion completion) = 0;

  // Keeps a buffer alive until all work enqueued before has finished: frees in stream order.
  virtual void keep_until_here(BufferPtr buffer) = 0;

  // Between begin_graph and end_graph, work is recorded instead of run.
  virtual void begin_graph() = 0;
  virtual std::shared_ptr<Graph> end_graph() = 0;
  virtual void launch(const std::shared_ptr<Graph>& graph) = 0;

  // Finishes what is running, drops what is queued (completions are told ERR_LOZA_CLOSED) and
  // refuses everything else from now on. Blocks while the operation that is running ends.
  virtual void close() = 0;
};

}  // namespace loza
