#include "addon/environment.h"
#include "addon/wraps.h"
#include "core/mapped_file.h"

namespace loza::addon {

Device& DeviceState::open() {
  if (device == nullptr) fail(code::kClosed, "the device is closed");
  return *device;
}

std::shared_ptr<Stream> DeviceState::make_stream() {
  auto stream = open().make_stream();
  std::erase_if(streams, [](const auto& known) { return known.expired(); });
  streams.push_back(stream);
  return stream;
}

std::shared_ptr<Arena> DeviceState::make_arena() {
  auto arena = std::make_shared<Arena>(open());
  std::erase_if(arenas, [](const auto& known) { return known.expired(); });
  arenas.push_back(arena);
  return arena;
}

void DeviceState::free_in_order(BufferPtr buffer) {
  if (buffer == nullptr) return;
  for (const auto& known : streams)
    if (const auto stream = known.lock()) stream->keep_until_here(buffer);
}

void DeviceState::close() {
  for (const auto& known : std::exchange(streams, {}))
    if (const auto stream = known.lock()) stream->close();
  for (const auto& known : std::exchange(arenas, {}))
    if (const auto arena = known.lock()) arena->take_slabs();
  tensors.clear();
  device.reset();
}

std::vector<int64_t> read_shape(const Napi::CallbackInfo& info, size_t at) {
  const auto array = info[at].As<Napi::Array>();
  std::vector<int64_t> shape(array.Length());
  for (uint32_t i = 0; i < shape.size(); i++)
    shape[i] = array.Get(i).As<Napi::Number>().Int64Value();
  return shape;
}

// Arguments: parent, dtype, offset in bytes, shape array, strides array (in elements).
Tensor read_view(const TensorTable& tensors, const Napi::CallbackInfo& info) {
  const Tensor& parent = tensors.get(info[0].As<Napi::Number>().Int32Value());
  const auto dtype = static_cast<DType>(info[1].As<Napi::Number>().Int32Value());
  const int64_t offset = info[2].As<Napi::Number>().Int64Value();
  const auto shape = read_shape(info, 3);
  const auto strides = read_shape(info, 4);
  check(shape.size() == strides.size(), "view: shape and strides differ in rank");

  Tensor view = contiguous_view(nullptr, dtype, static_cast<int>(shape.size()), shape.data());
  int64_t last = view.elements() == 0 ? -1 : 0;  // offset of the last element
  for (int i = 0; i < view.rank; i++) {
    check(strides[i] >= 0, "view: negative stride");
    view.strides[i] = strides[i];
    if (last >= 0) last += (shape[i] - 1) * strides[i];
  }
  int64_t parent_last = parent.elements() == 0 ? -1 : 0;
  for (int i = 0; i < parent.rank && parent_last >= 0; i++)
    parent_last += (parent.shape[i] - 1) * parent.strides[i];
  const int64_t end = offset + (last + 1) * size_of(dtype);
  check(offset >= 0 && end <= (parent_last + 1) * size_of(parent.dtype), "view: bytes ", offset,
        " to ", end, " lie outside ", parent);
  check(offset % size_of(dtype) == 0 &&
            reinterpret_cast<uintptr_t>(parent.data) % static_cast<uintptr_t>(size_of(dtype)) == 0,
        "view: byte offset ", offset, " is not aligned for ", name_of(dtype));
  view.data = parent.as<std::byte>() + offset;
  return view;
}

Napi::Function DeviceWrap::define(Napi::Env env) {
  return DefineClass(
      env, "Device",
      {InstanceMethod<&DeviceWrap::allocate>("allocate"),
       InstanceMethod<&DeviceWrap::map_file>("mapFile"),
       InstanceMethod<&DeviceWrap::view>("view"), InstanceMethod<&DeviceWrap::release>("release"),
       InstanceMethod<&DeviceWrap::arena>("arena"), InstanceMethod<&DeviceWrap::stream>("stream"),
       InstanceMethod<&DeviceWrap::memory>("memory"),
       InstanceMethod<&DeviceWrap::fail_allocation_after>("failAllocationAfter"),
       InstanceMethod<&DeviceWrap::close>("close")});
}

DeviceWrap::DeviceWrap(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(),
          [&] { state_->device = open_device(info[0].As<Napi::String>().Utf8Value()); });
}

// allocate(dtype, purpose, shape): handle
Napi::Value DeviceWrap::allocate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto dtype = static_cast<DType>(info[0].As<Napi::Number>().Int32Value());
    const auto purpose = static_cast<Purpose>(info[1].As<Napi::Number>().Int32Value());
    const auto shape = read_shape(info, 2);
    Tensor tensor = contiguous_view(nullptr, dtype, static_cast<int>(shape.size()), shape.data());
    auto buffer =
        state_->open().allocate(static_cast<size_t>(std::max<int64_t>(tensor.bytes(), 1)), purpose);
    tensor.data = buffer->data();
    return Napi::Number::New(info.Env(), state_->tensors.add(tensor, std::move(buffer)));
  });
}

// mapFile(path, bytes): handle of the file as f8e4m3 [bytes], from which tensors are views
Napi::Value DeviceWrap::map_file(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::string path = info[0].As<Napi::String>().Utf8Value();
    const int64_t bytes = info[1].As<Napi::Number>().Int64Value();
    auto file = std::make_shared<MappedFile>(state_->open().account_ptr(), path,
                                             static_cast<size_t>(bytes));
    const Tensor tensor = contiguous_view(file->data(), DType::kF8E4M3, 1, &bytes);
    return Napi::Number::New(info.Env(), state_->tensors.add(tensor, std::move(file)));
  });
}

// view(parent, dtype, byteOffset, shape, strides): handle that shares the parent's memory
Napi::Value DeviceWrap::view(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    state_->open();
    const Tensor view = read_view(state_->tensors, info);
    auto owner = state_->tensors.owner(info[0].As<Napi::Number>().Int32Value());
    return Napi::Number::New(info.Env(), state_->tensors.add(view, std::move(owner)));
  });
}

void DeviceWrap::release(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    state_->open();
    state_->free_in_order(state_->tensors.remove(info[0].As<Napi::Number>().Int32Value()));
  });
}

Napi::Value DeviceWrap::arena(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = Napi::External<std::shared_ptr<DeviceState>>::New(info.Env(), &state_);
    return Environment::of(info.Env()).arena_class.New({state});
  });
}

Napi::Value DeviceWrap::stream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = Napi::External<std::shared_ptr<DeviceState>>::New(info.Env(), &state_);
    return Environment::of(info.Env()).stream_class.New({state});
  });
}

// memory(): bytes by purpose, and the largest sum there was
Napi::Value DeviceWrap::memory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const MemoryAccount& account = state_->open().account();
    auto memory = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, int64_t bytes) {
      memory.Set(name, Napi::Number::New(info.Env(), static_cast<double>(bytes)));
    };
    set("weights", account.bytes(Purpose::kWeights));
    set("mappedWeights", account.bytes(Purpose::kMappedWeights));
    set("kv", account.bytes(Purpose::kKv));
    set("workspace", account.bytes(Purpose::kWorkspace));
    set("peak", account.peak());
    return memory;
  });
}

void DeviceWrap::fail_allocation_after(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    state_->open().account().fail_allocation_after(info[0].As<Napi::Number>().Int64Value());
  });
}

void DeviceWrap::close(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { state_->close(); });
}

}  // namespace loza::addon
