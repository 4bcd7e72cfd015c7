#include "cuda/cuda_graph.h"

#include "cuda/check.h"
#include "cuda/context.h"

namespace loza {

CudaGraph::CudaGraph(cudaGraph_t recorded) : recorded_(recorded) {
  try {
    size_t nodes = 0;
    cuda::check(cudaGraphGetNodes(recorded_, nullptr, &nodes), "cudaGraphGetNodes");
    if (nodes == 0) return;
    cuda::check(cudaGraphInstantiate(&executable_, recorded_, 0), "cudaGraphInstantiate");
  } catch (...) {
    destroy();
    throw;
  }
}

CudaGraph::~CudaGraph() { destroy(); }

void CudaGraph::destroy() noexcept {
  cuda::make_current_quietly();
  if (executable_ != nullptr && cudaGraphExecDestroy(executable_) != cudaSuccess)
    cudaGetLastError();
  if (cudaGraphDestroy(recorded_) != cudaSuccess) cudaGetLastError();
}

void CudaGraph::launch(cudaStream_t stream) const {
  if (executable_ != nullptr) cuda::check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
}

void CudaGraph::record_into(cudaStream_t stream) const {
  if (executable_ == nullptr) return;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t outer = nullptr;
  const cudaGraphNode_t* before = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
  cuda::check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &outer, &before, &edges, &count),
              "cudaStreamGetCaptureInfo");
  check(status == cudaStreamCaptureStatusActive, "launch: the recording was broken off");
  cudaGraphNode_t node = nullptr;
  cuda::check(cudaGraphAddChildGraphNode(&node, outer, before, count, recorded_),
              "cudaGraphAddChildGraphNode");
  cuda::check(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1,
                                                  cudaStreamSetCaptureDependencies),
              "cudaStreamUpdateCaptureDependencies");
}

}  // namespace loza
