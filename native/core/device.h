// Device: where tensors live. One per loaded model, so that everything it took can be accounted for
// and given back.
#pragma once

#include <memory>
#include <string>

#include "core/memory.h"
#include "core/stream.h"

namespace loza {

class Device {
 public:
  virtual ~Device() = default;

  virtual BufferPtr allocate(size_t bytes, Purpose purpose) = 0;
  // Bytes that nobody on this machine uses, as far as the system tells.
  virtual int64_t free_memory() const = 0;
  // A stream whose activations have this type; throws where the device cannot compute in it.
  virtual std::shared_ptr<Stream> make_stream(DType activation) = 0;

  MemoryAccount& account() { return *account_; }
  const std::shared_ptr<MemoryAccount>& account_ptr() const { return account_; }

 protected:
  std::shared_ptr<MemoryAccount> account_ = std::make_shared<MemoryAccount>();
};

struct DeviceInfo {
  std::string kind;  // "cpu" | "cuda"
  std::string name;  // what a person would call it
  bool usable = false;
  std::string reason;  // why not, when it is not usable
  int cores = 0;
  int64_t memory_bytes = 0;
};

// Every device this build knows of, usable or not.
std::vector<DeviceInfo> probe_devices();

// Opens a device; throws ERR_LOZA_DEVICE_UNAVAILABLE with the reason.
std::unique_ptr<Device> open_device(const std::string& kind);

}  // namespace loza
