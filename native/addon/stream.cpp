#include <cstring>

#include "addon/environment.h"
#include "addon/wraps.h"
#include "core/mapped_file.h"

namespace loza::addon {

Napi::Function StreamWrap::define(Napi::Env env) {
  std::vector<Napi::ClassPropertyDescriptor<StreamWrap>> methods{
      InstanceMethod<&StreamWrap::write>("write"),
      InstanceMethod<&StreamWrap::upload>("upload"),
      InstanceMethod<&StreamWrap::read>("read"),
      InstanceMethod<&StreamWrap::synchronize>("synchronize"),
      InstanceMethod<&StreamWrap::begin_graph>("beginGraph"),
      InstanceMethod<&StreamWrap::end_graph>("endGraph"),
      InstanceMethod<&StreamWrap::launch>("launch")};
  for (const napi_property_descriptor& operation : operation_methods())
    methods.emplace_back(operation);
  return DefineClass(env, "Stream", methods);
}

StreamWrap::StreamWrap(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(), [&] {
    state_ = *info[0].As<Napi::External<std::shared_ptr<DeviceState>>>().Data();
    stream_ = state_->make_stream(static_cast<DType>(info[1].As<Napi::Number>().Int32Value()));
    Environment::of(info.Env()).watch(stream_);
  });
}

// write(tensor, typedArray): copies now, arrives in stream order
void StreamWrap::write(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    check_open();
    const Tensor& to = tensors().get(read_handle(info, 0));
    const auto from = info[1].As<Napi::TypedArray>();
    const auto* bytes = static_cast<const std::byte*>(from.ArrayBuffer().Data());
    stream_->write(to, bytes + from.ByteOffset(), from.ByteLength());
  });
}

// upload(to, from): `from` is a view of a mapped file
void StreamWrap::upload(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    check_open();
    const int64_t from = read_handle(info, 1);
    const auto file = std::dynamic_pointer_cast<const MappedFile>(tensors().owner(from));
    check(file != nullptr, "upload: the source is not a view of a mapped file");
    stream_->upload(tensors().get(read_handle(info, 0)), tensors().get(from), file);
  });
}

// read(tensor): promise of an ArrayBuffer with the tensor's bytes
Napi::Value StreamWrap::read(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_open();
    const Tensor& from = tensors().get(read_handle(info, 0));
    auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(from.bytes()));
    stream_->read(from, bytes->data());
    return when_done(info.Env(), [bytes](Napi::Env env) {
      auto buffer = Napi::ArrayBuffer::New(env, bytes->size());
      std::memcpy(buffer.Data(), bytes->data(), bytes->size());
      return Napi::Value(buffer);
    });
  });
}

// synchronize(): promise that resolves when everything enqueued so far is done
Napi::Value StreamWrap::synchronize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_open();
    return when_done(info.Env(), [](Napi::Env env) { return env.Undefined(); });
  });
}

// A promise for the work enqueued so far. A stream that refuses rejects it: a promise left pending
// would keep the process alive.
Napi::Value StreamWrap::when_done(Napi::Env env, Completions::Result result) {
  auto pending = Environment::of(env).completions->add(env, std::move(result));
  try {
    stream_->on_complete(pending.settle);
  } catch (const Error& error) {
    pending.settle(error);
  }
  return pending.promise;
}

void StreamWrap::begin_graph(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    check_open();
    stream_->begin_graph();
  });
}

Napi::Value StreamWrap::end_graph(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    check_open();
    auto graph = stream_->end_graph();
    return Environment::of(info.Env())
        .graph_class.New({Napi::External<std::shared_ptr<Graph>>::New(info.Env(), &graph)});
  });
}

void StreamWrap::launch(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    check_open();
    stream_->launch(GraphWrap::Unwrap(info[0].As<Napi::Object>())->graph());
  });
}

Napi::Function GraphWrap::define(Napi::Env env) { return DefineClass(env, "Graph", {}); }

GraphWrap::GraphWrap(const Napi::CallbackInfo& info)
    : ObjectWrap(info), graph_(*info[0].As<Napi::External<std::shared_ptr<Graph>>>().Data()) {}

}  // namespace loza::addon
