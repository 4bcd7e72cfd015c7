// A recorded sequence of launches, replayed with one call.
#pragma once

#include <cuda_runtime.h>

#include "core/stream.h"

namespace loza {

class CudaGraph final : public Graph {
 public:
  // Takes the graph over.
  explicit CudaGraph(cudaGraph_t recorded);
  ~CudaGraph() override;
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void launch(cudaStream_t stream) const;
  // Makes it a part of what the stream is recording.
  void record_into(cudaStream_t stream) const;

 private:
  void destroy() noexcept;

  cudaGraph_t recorded_;
  cudaGraphExec_t executable_ = nullptr;  // null: nothing was recorded
};

}  // namespace loza
