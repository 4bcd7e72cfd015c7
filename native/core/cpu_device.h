#pragma once

#include "core/device.h"

namespace loza {

class CpuDevice final : public Device {
 public:
  BufferPtr allocate(size_t bytes, Purpose purpose) override;
  std::shared_ptr<Stream> make_stream(DType activation) override;
  int64_t free_memory() const override;
};

}  // namespace loza
