// The arguments of an operation's call, read one after the other.
#pragma once

#include <array>

#include "addon/wraps.h"
#include "ops/ops.h"

namespace loza::addon {

class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info) : env_(env) {
    size_t count = values_.size();
    napi_value self;
    ok(napi_get_cb_info(env, info, &count, values_.data(), &self, nullptr));
    check(count <= values_.size(), "too many arguments");
    count_ = count;
    void* wrapped = nullptr;
    ok(napi_unwrap(env, self, &wrapped));
    stream_ = static_cast<StreamWrap*>(wrapped);
    stream_->check_open();
  }

  StreamWrap& stream() const { return *stream_; }
  const Tensor& tensor() { return stream_->tensors().get(handle()); }
  Tensor optional_tensor() {
    const int64_t value = handle();
    return value == 0 ? Tensor{} : stream_->tensors().get(value);
  }
  int32_t integer() {
    int32_t value;
    ok(napi_get_value_int32(env_, next(), &value));
    return value;
  }
  float number() {
    double value;
    ok(napi_get_value_double(env_, next(), &value));
    return static_cast<float>(value);
  }
  bool boolean() {
    bool value;
    ok(napi_get_value_bool(env_, next(), &value));
    return value;
  }
  KeyRange key_range() {
    const int32_t sink_blocks = integer();
    return {.sink_blocks = sink_blocks, .local_blocks = integer()};
  }
  void done() const { check(next_ == count_, "expected ", next_, " arguments, got ", count_); }

 private:
  int64_t handle() {
    int64_t value;
    ok(napi_get_value_int64(env_, next(), &value));
    return value;
  }
  napi_value next() {
    check(next_ < count_, "expected more than ", count_, " arguments");
    return values_[next_++];
  }
  void ok(napi_status status) const {
    check(status == napi_ok, "argument ", next_, " has the wrong type");
  }

  napi_env env_;
  std::array<napi_value, 20> values_;
  size_t count_ = 0;
  size_t next_ = 0;
  StreamWrap* stream_ = nullptr;
};

// The readers of gradient_ops.cpp; those of the forward pass are in ops.cpp.
#define LOZA_DECLARE(Op) void read(Arguments& a, Op##Params& p);
LOZA_DECLARE(Adamw)
LOZA_DECLARE(Blend)
LOZA_DECLARE(ClipFactor)
LOZA_DECLARE(CombineGradient)
LOZA_DECLARE(CrossEntropy)
LOZA_DECLARE(Dot)
LOZA_DECLARE(GatherRowsGradient)
LOZA_DECLARE(GroupedLinearInputGradient)
LOZA_DECLARE(GroupedLinearWeightGradient)
LOZA_DECLARE(LinearInputGradient)
LOZA_DECLARE(LinearWeightGradient)
LOZA_DECLARE(RmsNormGradient)
LOZA_DECLARE(RouteGradient)
LOZA_DECLARE(SquaredDifference)
LOZA_DECLARE(SumSlots)
LOZA_DECLARE(SwigluGradient)
#undef LOZA_DECLARE

}  // namespace loza::addon
