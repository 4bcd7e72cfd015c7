// Turns what the CUDA runtime reports into this project's errors. Nothing here ends the process.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

namespace loza {

namespace code {
inline constexpr const char* kCuda = "ERR_LOZA_CUDA";
}  // namespace code

namespace cuda {

// Throws ERR_LOZA_OUT_OF_MEMORY for cudaErrorMemoryAllocation, ERR_LOZA_CUDA for the rest; clears
// the runtime's last error, so that a later call does not report it again.
void check(cudaError_t result, const char* what);

// After a launch: reports a bad configuration or a missing kernel image at the operation's name.
inline void check_launch(const char* operation) { check(cudaGetLastError(), operation); }

}  // namespace cuda

}  // namespace loza
