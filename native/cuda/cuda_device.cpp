#include "cuda/cuda_device.h"

#include <cuda_runtime.h>

#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/cuda_stream.h"
#include "cuda/staging.h"

namespace loza {

namespace {

constexpr size_t kSlabBytes = size_t{64} << 20;
constexpr size_t kMaxSharedBytes = kSlabBytes / 8;
constexpr size_t kAlignment = 256;

size_t align_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

// What cudaMalloc gave.
class CudaDevice::Block {
 public:
  // Null when there is not that much.
  static std::shared_ptr<Block> make(size_t bytes) {
    void* data = nullptr;
    const cudaError_t result = cudaMalloc(&data, bytes);
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    cuda::check(result, "cudaMalloc");
    return std::make_shared<Block>(static_cast<std::byte*>(data));
  }
  explicit Block(std::byte* data) : data_(data) {}
  ~Block() {  // also at the end of the process, or after an error: nobody is left to tell
    cuda::make_current_quietly();
    if (cudaFree(data_) != cudaSuccess) cudaGetLastError();
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* data_;
};

// A buffer: a block, or a part of one.
class CudaDevice::View final : public Buffer {
 public:
  View(std::shared_ptr<MemoryAccount> account, Purpose purpose, size_t bytes,
       std::shared_ptr<Block> block, size_t offset)
      : Buffer(std::move(account), purpose, bytes), block_(std::move(block)) {
    data_ = block_->data() + offset;
    account_->add(purpose_, static_cast<int64_t>(bytes_));
  }
  ~View() override { account_->add(purpose_, -static_cast<int64_t>(bytes_)); }

 private:
  std::shared_ptr<Block> block_;
};

// Pinned memory of the host. Kernels reach it over the bus, at the address it has there.
class CudaDevice::HostBuffer final : public Buffer {
 public:
  HostBuffer(std::shared_ptr<MemoryAccount> account, size_t bytes)
      : Buffer(std::move(account), Purpose::kHost, bytes), memory_(bytes) {
    data_ = memory_.data();
    account_->add(purpose_, static_cast<int64_t>(bytes_));
  }
  ~HostBuffer() override { account_->add(purpose_, -static_cast<int64_t>(bytes_)); }

 private:
  cuda::Pinned memory_;
};

CudaDevice::CudaDevice() { cuda::make_current(); }

CudaDevice::~CudaDevice() = default;

BufferPtr CudaDevice::allocate(size_t bytes, Purpose purpose) {
  cuda::make_current();
  if (account_->injected_failure()) out_of_memory(bytes);
  if (purpose == Purpose::kHost) return std::make_shared<HostBuffer>(account_, bytes);
  if (purpose == Purpose::kWeights && bytes <= kMaxSharedBytes) return allocate_weight(bytes);
  auto block = Block::make(bytes);
  if (block == nullptr) out_of_memory(bytes);
  return std::make_shared<View>(account_, purpose, bytes, std::move(block), 0);
}

BufferPtr CudaDevice::allocate_weight(size_t bytes) {
  if (slab_ == nullptr || slab_used_ + bytes > kSlabBytes) {
    auto slab = Block::make(kSlabBytes);
    if (slab == nullptr) {  // little memory is left: take no more of it than asked
      auto block = Block::make(bytes);
      if (block == nullptr) out_of_memory(bytes);
      return std::make_shared<View>(account_, Purpose::kWeights, bytes, std::move(block), 0);
    }
    slab_ = std::move(slab);
    slab_used_ = 0;
  }
  auto view = std::make_shared<View>(account_, Purpose::kWeights, bytes, slab_, slab_used_);
  slab_used_ += align_up(bytes);
  return view;
}

void CudaDevice::out_of_memory(size_t bytes) const {
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
  fail(code::kOutOfMemory, "the GPU could not give ", bytes, " bytes more (", free, " of its ",
       total, " bytes are free)");
}

int64_t CudaDevice::free_memory() const {
  cuda::make_current();
  size_t free = 0;
  size_t total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free);
}

std::shared_ptr<Stream> CudaDevice::make_stream(DType activation) {
  loza::check(activation == DType::kBF16 || activation == DType::kF32,
              "activations on CUDA are bf16 or f32, not ", name_of(activation));
  return std::make_shared<CudaStream>(*this, activation);
}

namespace {

DeviceInfo unusable(const std::string& reason, const std::string& name = "CUDA") {
  return {.kind = "cuda",
          .name = name,
          .usable = false,
          .reason = reason,
          .cores = 0,
          .memory_bytes = 0};
}

std::string version(int number) {
  return std::to_string(number / 1000) + '.' + std::to_string(number % 1000 / 10);
}

// None of these calls makes a context.
DeviceInfo look() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return unusable("no NVIDIA driver was found");
  if (driver / 1000 < CUDART_VERSION / 1000)
    return unusable("the NVIDIA driver is made for CUDA " + version(driver) +
                    ", but loza needs CUDA " + version(CUDART_VERSION) +
                    ": install driver R580 or newer");
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0))
    return unusable("there is a driver, but no NVIDIA GPU (CUDA_VISIBLE_DEVICES may hide it)");
  cudaDeviceProp properties{};
  cudaError_t result = counted;
  if (result == cudaSuccess) result = cudaGetDeviceProperties(&properties, cuda::kDevice);
  if (result != cudaSuccess)
    return unusable(std::string("the NVIDIA driver does not work: ") + cudaGetErrorString(result));
  if (properties.major != 9 || properties.minor != 0)
    return unusable(std::string(properties.name) + " has compute capability " +
                        std::to_string(properties.major) + '.' + std::to_string(properties.minor) +
                        ", but the kernels are made for 9.0 (Hopper: H100, H200, H20, GH200)",
                    properties.name);
  return {.kind = "cuda",
          .name = properties.name,
          .usable = true,
          .reason = "",
          .cores = properties.multiProcessorCount,
          .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem)};
}

}  // namespace

DeviceInfo probe_cuda() {
  static const DeviceInfo info = [] {
    DeviceInfo found = look();
    cudaGetLastError();  // a probe that failed is no error of later calls
    return found;
  }();
  return info;
}

std::unique_ptr<Device> open_cuda_device() { return std::make_unique<CudaDevice>(); }

}  // namespace loza
