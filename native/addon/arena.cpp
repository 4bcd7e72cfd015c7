#include "addon/environment.h"
#include "addon/wraps.h"

namespace loza::addon {

Napi::Function ArenaWrap::define(Napi::Env env) {
  return DefineClass(
      env, "Arena",
      {InstanceMethod<&ArenaWrap::allocate>("allocate"), InstanceMethod<&ArenaWrap::view>("view"),
       InstanceMethod<&ArenaWrap::mark>("mark"), InstanceMethod<&ArenaWrap::release>("release")});
}

ArenaWrap::ArenaWrap(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(), [&] {
    state_ = *info[0].As<Napi::External<std::shared_ptr<DeviceState>>>().Data();
    arena_ = state_->make_arena();
  });
}

ArenaWrap::~ArenaWrap() {
  if (arena_ == nullptr) return;
  for (BufferPtr& slab : arena_->take_slabs()) state_->free_in_order(std::move(slab));
}

// allocate(dtype, shape): handle, valid until a mark taken earlier is released
Napi::Value ArenaWrap::allocate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    state_->open();
    const auto dtype = static_cast<DType>(info[0].As<Napi::Number>().Int32Value());
    const auto shape = read_shape(info, 1);
    const Tensor tensor = arena_->allocate(dtype, static_cast<int>(shape.size()), shape.data());
    return keep(state_->tensors.add(tensor, nullptr), info.Env());
  });
}

Napi::Value ArenaWrap::view(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    state_->open();
    const Tensor view = read_view(state_->tensors, info);
    auto owner = state_->tensors.owner(read_handle(info, 0));
    return keep(state_->tensors.add(view, std::move(owner)), info.Env());
  });
}

Napi::Value ArenaWrap::keep(int64_t handle, Napi::Env env) {
  handles_.push_back(handle);
  return new_handle(env, handle);
}

Napi::Value ArenaWrap::mark(const Napi::CallbackInfo& info) {
  marks_.push_back({arena_->mark(), handles_.size()});
  return Napi::Number::New(info.Env(), static_cast<double>(marks_.size() - 1));
}

void ArenaWrap::release(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    state_->open();
    const auto index = static_cast<size_t>(info[0].As<Napi::Number>().Int64Value());
    check(index < marks_.size(), "arena: mark ", index, " was released before");
    const Mark mark = marks_[index];
    for (size_t i = mark.handles; i < handles_.size(); i++)
      state_->free_in_order(state_->tensors.remove(handles_[i]));
    handles_.resize(mark.handles);
    marks_.resize(index);
    arena_->release(mark.memory);
  });
}

}  // namespace loza::addon
