// The GPU as a device: device 0 of what CUDA_VISIBLE_DEVICES leaves. No CUDA header here, so that
// native/core can include it.
#pragma once

#include "core/device.h"

namespace loza {

class CudaDevice final : public Device {
 public:
  CudaDevice();
  ~CudaDevice() override;

  BufferPtr allocate(size_t bytes, Purpose purpose) override;
  std::shared_ptr<Stream> make_stream(DType activation) override;
  int64_t free_memory() const override;

 private:
  class Block;
  class View;
  class HostBuffer;

  BufferPtr allocate_weight(size_t bytes);
  [[noreturn]] void out_of_memory(size_t bytes) const;

  // Small weights share blocks: there are thousands of them, and they go together.
  std::shared_ptr<Block> slab_;
  size_t slab_used_ = 0;
};

// What the machine has, looked up once in a process and without opening a CUDA context.
DeviceInfo probe_cuda();

std::unique_ptr<Device> open_cuda_device();

}  // namespace loza
