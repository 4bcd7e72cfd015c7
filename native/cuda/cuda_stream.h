// The CUDA stream: operations are kernel launches on one cudaStream_t. A waiter thread reports
// completions, so that no JavaScript thread ever waits for the GPU.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "core/stream.h"

namespace loza {

class CudaDevice;

class CudaStream final : public Stream {
 public:
  CudaStream(CudaDevice& device, DType activation);
  ~CudaStream() override;

  // What an operation's launcher may use.
  cudaStream_t handle() const;
  int multiprocessors() const;
  // Device memory for one operation; the next operation that asks gets the same bytes. Grows only,
  // and what it outgrew stays alive, because a graph may have recorded it.
  std::byte* scratch(size_t bytes);
  // Where matrix products keep their library handles (cublasLt); made at first use.
  class MatrixLibrary& matrix_library();

  Ops& ops() override;
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
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace loza
