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

// unusedHeapBytes(): what malloc keeps of the memory that was freed, up to 4 GiB
Napi::Value unused_heap_bytes(const Napi::CallbackInfo& info) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  // Not mallinfo2, which glibc has since 2.33; this one wraps.
  const auto bytes = static_cast<uint32_t>(mallinfo().fordblks);
#pragma GCC diagnostic pop
  return Napi::Number::New(info.Env(), bytes);
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto environment = std::make_unique<Environment>(env);
  environment->arena_class = Napi::Persistent(ArenaWrap::define(env));
  environment->stream_class = Napi::Persistent(StreamWrap::define(env));
  environment->graph_class = Napi::Persistent(GraphWrap::define(env));
  env.SetInstanceData(environment.release());

  exports.Set("Device", DeviceWrap::define(env));
  exports.Set("probeDevices", Napi::Function::New(env, probe, "probeDevices"));
  exports.Set("unusedHeapBytes", Napi::Function::New(env, unused_heap_bytes, "unusedHeapBytes"));
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
