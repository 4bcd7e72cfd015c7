// The addon's exports.
#include <malloc.h>
#include <napi.h>

#include "addon/environment.h"
#include "addon/wraps.h"
#include "core/device.h"

namespace loza::addon {

namespace {

// probeDevices(): every device this build knows of, usable or not, with the reason
Napi::Value probe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto list = Napi::Array::New(env);
  for (const DeviceInfo& device : probe_devices()) {
    auto entry = Napi::Object::New(env);
    entry.Set("kind", device.kind);
    entry.Set("name", device.name);
    entry.Set("usable", device.usable);
    entry.Set("reason", device.reason);
    entry.Set("cores", device.cores);
    entry.Set("memoryBytes", static_cast<double>(device.memory_bytes));
    list.Set(list.Length(), entry);
  }
  return list;
}

// mallocBytes(): what was got of malloc, and what it keeps of the memory that was freed
Napi::Value malloc_bytes(const Napi::CallbackInfo& info) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  // Not mallinfo2, which glibc has since 2.33. The fields of this one are those modulo 2^32.
  const struct mallinfo all = mallinfo();
#pragma GCC diagnostic pop
  const auto bytes = Napi::Object::New(info.Env());
  bytes.Set("used", static_cast<uint32_t>(all.uordblks) + static_cast<uint32_t>(all.hblkhd));
  bytes.Set("unused", static_cast<uint32_t>(all.fordblks));
  return bytes;
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto environment = std::make_unique<Environment>(env);
  environment->arena_class = Napi::Persistent(ArenaWrap::define(env));
  environment->stream_class = Napi::Persistent(StreamWrap::define(env));
  environment->graph_class = Napi::Persistent(GraphWrap::define(env));
  env.SetInstanceData(environment.release());

  exports.Set("Device", DeviceWrap::define(env));
  exports.Set("probeDevices", Napi::Function::New(env, probe, "probeDevices"));
  exports.Set("mallocBytes", Napi::Function::New(env, malloc_bytes, "mallocBytes"));
#ifdef LOZA_HAVE_CUDA
  exports.Set("cuda", true);
#else
  exports.Set("cuda", false);
#endif
  return exports;
}

}  // namespace

NODE_API_MODULE(loza, initialize)

}  // namespace loza::addon
