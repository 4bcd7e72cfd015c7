#include <algorithm>
#include <cmath>

#include "addon/environment.h"
#include "addon/wraps.h"
#include "core/mapped_file.h"

namespace loza::addon {

// The largest integer that a JavaScript number holds exactly.
constexpr int64_t kMaxInteger = (int64_t{1} << 53) - 1;

Device& DeviceState::open() {
  if (device == nullptr) fail(code::kClosed, "the device is closed");
  return *device;
}

std::shared_ptr<Stream> DeviceState::make_stream(DType activation) {
  auto stream = open().make_stream(activation);
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
  for (uint32_t i = 0; i < shape.size(); i++) {
    const double extent = array.Get(i).As<Napi::Number>().DoubleValue();
    if (!(extent >= 0 && extent <= kMaxInteger && extent == std::floor(extent)))
      fail(code::kInvalidArg, "a dimension or stride must be an integer of 0 or more, got ",
           extent);
    shape[i] = static_cast<int64_t>(extent);
  }
  return shape;
}

namespace {

// Bytes from a tensor's first element to the end of its last; throws when they overflow.
int64_t span_bytes(const Tensor& tensor) {
  if (tensor.elements() == 0) return 0;
  int64_t elements = 1;
  for (int i = 0; i < tensor.rank; i++) {
    int64_t reach;
    if (__builtin_mul_overflow(tensor.shape[i] - 1, tensor.strides[i], &reach) ||
        __builtin_add_overflow(elements, reach, &elements) || elements > kMaxInteger)
      fail(code::kInvalidArg, "a tensor that spans more than 2^53 elements");
  }
  return elements * size_of(tensor.dtype);
}

}  // namespace

Tensor read_view(const TensorTable& tensors, const Napi::CallbackInfo& info) {
  const Tensor& parent = tensors.get(read_handle(info, 0));
  const auto dtype = static_cast<DType>(info[1].As<Napi::Number>().Int32Value());
  const int64_t offset = info[2].As<Napi::Number>().Int64Value();
  const auto shape = read_shape(info, 3);
  const auto strides = read_shape(info, 4);
  check(shape.size() == strides.size(), "view: shape and strides differ in rank");

  Tensor view = contiguous_view(nullptr, dtype, static_cast<int>(shape.size()), shape.data());
  std::copy(strides.begin(), strides.end(), view.strides.begin());
  const int64_t bytes = span_bytes(view);
  if (bytes == 0) {  // nothing in it will ever be read, wherever it lies
    view.data = parent.data;
    return view;
  }
  check(offset >= 0 && offset <= kMaxInteger && offset + bytes <= span_bytes(parent),
        "view: ", bytes, " bytes from ", offset, " lie outside ", parent);
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
       InstanceMethod<&DeviceWrap::map_file>("mapFile"), InstanceMethod<&DeviceWrap::view>("view"),
       InstanceMethod<&DeviceWrap::release>("release"), InstanceMethod<&DeviceWrap::arena>("arena"),
       InstanceMethod<&DeviceWrap::stream>("stream"), InstanceMethod<&DeviceWrap::memory>("memory"),
       InstanceMethod<&DeviceWrap::free_memory>("freeMemory"),
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
    return new_handle(info.Env(), state_->tensors.add(tensor, std::move(buffer)));
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
    return new_handle(info.Env(), state_->tensors.add(tensor, std::move(file)));
  });
}

// view(parent, dtype, byteOffset, shape, strides): handle that shares the parent's memory
Napi::Value DeviceWrap::view(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    state_->open();
    const Tensor view = read_view(state_->tensors, info);
    auto owner = state_->tensors.owner(read_handle(info, 0));
    return new_handle(info.Env(), state_->tensors.add(view, std::move(owner)));
  });
}

void DeviceWrap::release(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    state_->open();
    state_->free_in_order(state_->tensors.remove(read_handle(info, 0)));
  });
}

Napi::Value DeviceWrap::arena(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = Napi::External<std::shared_ptr<DeviceState>>::New(info.Env(), &state_);
    return Environment::of(info.Env()).arena_class.New({state});
  });
}

// stream(activation): a Stream whose activations have this dtype
Napi::Value DeviceWrap::stream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = Napi::External<std::shared_ptr<DeviceState>>::New(info.Env(), &state_);
    return Environment::of(info.Env()).stream_class.New({state, info[0]});
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
    set("host", account.bytes(Purpose::kHost));
    set("peak", account.peak());
    return memory;
  });
}

// freeMemory(): bytes
Napi::Value DeviceWrap::free_memory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::Number::New(info.Env(), static_cast<double>(state_->open().free_memory()));
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
