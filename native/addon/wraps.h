// The JavaScript classes: Device, Arena, Stream and Graph. They check state (closed or not) and
// pass on; arguments were validated in TypeScript.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "addon/completions.h"
#include "addon/handles.h"
#include "core/device.h"

namespace loza::addon {

// Shared by a Device and its arenas and streams; `device` is null once closed.
struct DeviceState {
  std::unique_ptr<Device> device;
  TensorTable tensors;
  std::vector<std::weak_ptr<Stream>> streams;
  std::vector<std::weak_ptr<Arena>> arenas;

  Device& open();
  std::shared_ptr<Stream> make_stream(DType activation);
  std::shared_ptr<Arena> make_arena();
  // Frees memory once all work enqueued so far is done.
  void free_in_order(BufferPtr buffer);
  void close();
};

class DeviceWrap : public Napi::ObjectWrap<DeviceWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit DeviceWrap(const Napi::CallbackInfo& info);

 private:
  Napi::Value allocate(const Napi::CallbackInfo& info);
  Napi::Value map_file(const Napi::CallbackInfo& info);
  Napi::Value view(const Napi::CallbackInfo& info);
  void release(const Napi::CallbackInfo& info);
  Napi::Value arena(const Napi::CallbackInfo& info);
  Napi::Value stream(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value free_memory(const Napi::CallbackInfo& info);
  void fail_allocation_after(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  std::shared_ptr<DeviceState> state_ = std::make_shared<DeviceState>();
};

class ArenaWrap : public Napi::ObjectWrap<ArenaWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit ArenaWrap(const Napi::CallbackInfo& info);
  ~ArenaWrap() override;

 private:
  Napi::Value allocate(const Napi::CallbackInfo& info);
  Napi::Value view(const Napi::CallbackInfo& info);
  Napi::Value mark(const Napi::CallbackInfo& info);
  void release(const Napi::CallbackInfo& info);
  Napi::Value keep(int64_t handle, Napi::Env env);

  struct Mark {
    Arena::Mark memory;
    size_t handles;
  };
  std::shared_ptr<DeviceState> state_;
  std::shared_ptr<Arena> arena_;
  std::vector<int64_t> handles_;  // in order of allocation
  std::vector<Mark> marks_;
};

class StreamWrap : public Napi::ObjectWrap<StreamWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit StreamWrap(const Napi::CallbackInfo& info);

  Stream& stream() const { return *stream_; }
  const TensorTable& tensors() const { return state_->tensors; }
  void check_open() const { state_->open(); }

 private:
  void write(const Napi::CallbackInfo& info);
  void upload(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value synchronize(const Napi::CallbackInfo& info);
  Napi::Value when_done(Napi::Env env, Completions::Result result);
  void begin_graph(const Napi::CallbackInfo& info);
  Napi::Value end_graph(const Napi::CallbackInfo& info);
  void launch(const Napi::CallbackInfo& info);

  std::shared_ptr<DeviceState> state_;
  std::shared_ptr<Stream> stream_;
};

class GraphWrap : public Napi::ObjectWrap<GraphWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit GraphWrap(const Napi::CallbackInfo& info);
  const std::shared_ptr<Graph>& graph() const { return graph_; }

 private:
  std::shared_ptr<Graph> graph_;
};

// The operations, as methods of Stream.
std::vector<napi_property_descriptor> operation_methods();

// A tensor's handle, from argument `at`, and one to give back.
inline int64_t read_handle(const Napi::CallbackInfo& info, size_t at) {
  return info[at].As<Napi::Number>().Int64Value();
}
inline Napi::Value new_handle(Napi::Env env, int64_t handle) {
  return Napi::Number::New(env, static_cast<double>(handle));
}

// A view's arguments: parent, dtype, offset in bytes, shape array, strides array (in elements).
Tensor read_view(const TensorTable& tensors, const Napi::CallbackInfo& info);
// A JavaScript array of dimensions, from argument `at`.
std::vector<int64_t> read_shape(const Napi::CallbackInfo& info, size_t at);

}  // namespace loza::addon
