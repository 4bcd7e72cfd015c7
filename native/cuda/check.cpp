#include "cuda/check.h"

#include <atomic>
#include <mutex>
#include <string>

#include "cuda/context.h"

namespace loza::cuda {

namespace {

// Errors after which every later call in the process fails ("sticky").
bool destroys_context(cudaError_t result) {
  switch (result) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

// The first error that destroyed the context. Never freed: threads may ask while the process ends.
struct Loss {
  std::atomic<bool> happened{false};
  std::mutex mutex;
  std::string message;

  static Loss& of_process() {
    static Loss* loss = new Loss;
    return *loss;
  }
  void remember(const std::string& why) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (happened) return;
    message = why;
    happened = true;
  }
};

}  // namespace

Error to_error(cudaError_t result, const char* what) {
  cudaGetLastError();
  std::ostringstream message;
  message << what << ": " << cudaGetErrorString(result) << " (" << cudaGetErrorName(result) << ')';
  if (result == cudaErrorMemoryAllocation) return Error(code::kOutOfMemory, message.str());
  if (destroys_context(result)) {
    message << "; it may come from an operation enqueued before. CUDA cannot be used any more in "
               "this process";
    Loss::of_process().remember(message.str());
  }
  return Error(code::kCuda, message.str());
}

void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) throw to_error(result, what);
}

std::optional<Error> lost_context() {
  Loss& loss = Loss::of_process();
  if (!loss.happened) return std::nullopt;
  const std::lock_guard<std::mutex> lock(loss.mutex);
  return Error(code::kCuda, loss.message);
}

void make_current() {
  if (const auto error = lost_context()) throw *error;
  check(cudaSetDevice(kDevice), "cudaSetDevice");
}

void make_current_quietly() noexcept {
  if (cudaSetDevice(kDevice) != cudaSuccess) cudaGetLastError();
}

}  // namespace loza::cuda
