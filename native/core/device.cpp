#include "core/device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "core/cpu_device.h"
#include "core/cpu_stream.h"
#ifdef LOZA_HAVE_CUDA
#include "cuda/cuda_device.h"
#endif

namespace loza {

#ifndef LOZA_HAVE_CUDA
namespace {

DeviceInfo probe_cuda() {
  return {
      .kind = "cuda",
      .name = "CUDA",
      .usable = false,
      .reason = "this build has no CUDA kernels: build where nvcc is found, or with LOZA_CUDA=ON",
      .cores = 0,
      .memory_bytes = 0};
}

// Never reached: the probe says that there is none.
std::unique_ptr<Device> open_cuda_device() { return nullptr; }

}  // namespace
#endif

namespace {

// Anonymous pages: zero until touched, so a large KV pool costs memory only as it fills.
class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(std::shared_ptr<MemoryAccount> account, Purpose purpose, size_t bytes)
      : Buffer(std::move(account), purpose, bytes) {
    void* pages = account_->injected_failure() ? MAP_FAILED
                                               : mmap(nullptr, length(), PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
      fail(code::kOutOfMemory, "the CPU could not give ", bytes, " bytes more (",
           account_->bytes(Purpose::kWeights) + account_->bytes(Purpose::kKv) +
               account_->bytes(Purpose::kWorkspace),
           " bytes are in use by this model)");
    data_ = static_cast<std::byte*>(pages);
    account_->add(purpose_, static_cast<int64_t>(bytes_));
  }
  ~CpuBuffer() override {
    munmap(data_, length());
    account_->add(purpose_, -static_cast<int64_t>(bytes_));
  }

 private:
  // Vector loads may look a little past the last element.
  size_t length() const { return bytes_ + 64; }
};

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "CPU";
}

DeviceInfo probe_cpu() {
  return {.kind = "cpu",
          .name = cpu_name(),
          .usable = true,
          .reason = "",
          .cores = available_cores(),
          .memory_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE)};
}

}  // namespace

BufferPtr CpuDevice::allocate(size_t bytes, Purpose purpose) {
  return std::make_shared<CpuBuffer>(account_, purpose, bytes);
}

std::shared_ptr<Stream> CpuDevice::make_stream(DType activation) {
  check(activation == DType::kF32, "activations on the CPU are f32, not ", name_of(activation));
  return std::make_shared<CpuStream>(available_cores());
}

int64_t CpuDevice::free_memory() const {
  return int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
}

std::vector<DeviceInfo> probe_devices() { return {probe_cpu(), probe_cuda()}; }

std::unique_ptr<Device> open_device(const std::string& kind) {
  if (kind == "cpu") return std::make_unique<CpuDevice>();
  if (kind != "cuda") fail(code::kDeviceUnavailable, "no device is called ", kind);
  const DeviceInfo info = probe_cuda();
  if (!info.usable) fail(code::kDeviceUnavailable, "device ", kind, ": ", info.reason);
  return open_cuda_device();
}

}  // namespace loza
