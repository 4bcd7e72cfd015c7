// The process's one CUDA context: device 0 of what CUDA_VISIBLE_DEVICES leaves. An illegal access and
// its like destroy the context for good: the process lives on, but without CUDA.
#pragma once

#include <cuda_runtime.h>

#include <optional>

#include "core/error.h"

namespace loza::cuda {

inline constexpr int kDevice = 0;

// Makes the device current on the calling thread; throws when the context is lost.
void make_current();
// The same where nothing may throw: destructors, the waiter, close().
void make_current_quietly() noexcept;

// The error for a failed call. Clears the runtime's last error, and remembers one that destroyed the
// context.
Error to_error(cudaError_t result, const char* what);

// Why no call works any more, if so.
std::optional<Error> lost_context();

}  // namespace loza::cuda
