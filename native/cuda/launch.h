// How every kernel starts: with programmatic dependent launch, so that its blocks are in place and
// its constants are loaded when the kernel before it ends (about a microsecond a kernel, which is
// most of what a light one takes). Recorded graphs keep these edges.
//
// A kernel that is launched here may start while the one before it still runs. It must therefore
//   call wait_for_prerequisites() (barrier.cuh) in every thread before it reads or writes what any
//     other kernel writes or reads; before that it may touch weights and parameters only;
//   not read such memory through __ldg, const __restrict__ or other promises that it never changes:
//     the compiler may move such loads above the wait.
// It should call launch_dependents() early: the next kernel's blocks then take what room there is, and
// wait. They wait for the whole kernel before, which has waited itself: so the order of a stream
// holds however many kernels have started.
#pragma once

#include <cuda_runtime.h>

#include "cuda/check.h"

namespace loza::cuda {

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks that share their memory; neighbours along x
};

template <class... Params, class... Args>
void launch_kernel(const char* operation, void (*kernel)(Params...), const Grid& grid,
                   cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {grid.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = grid.cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), operation);
}

}  // namespace loza::cuda
