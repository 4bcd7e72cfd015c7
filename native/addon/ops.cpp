// Operations as methods of Stream: stream.linear(out, x, weight, ...). This runs once an operation a
// layer a step, so it goes straight to Node-API: no allocation, about half a microsecond a call.
// Argument order is that of the params struct; an absent tensor is 0.
#include "ops/ops.h"

#include "addon/arguments.h"
#include "addon/environment.h"

namespace loza::addon {

namespace {

void read(Arguments& a, AbsorbQueryParams& p) {
  p.out = a.tensor(), p.q = a.tensor(), p.weight = a.tensor(), p.rope_table = a.tensor();
}
void read(Arguments& a, AttentionBackwardParams& p) {
  p.d_q = a.tensor(), p.d_kv = a.tensor(), p.d_k_rope = a.tensor();
  p.q = a.tensor(), p.kv = a.tensor(), p.k_rope = a.tensor();
  p.out = a.tensor(), p.lse = a.tensor(), p.d_out = a.tensor(), p.segments = a.tensor();
  p.softmax_scale = a.number(), p.range = a.key_range(), p.accumulate = a.boolean();
}
void read(Arguments& a, AttentionDecodeParams& p) {
  p.out = a.tensor(), p.lse = a.optional_tensor(), p.q = a.tensor(), p.cache = a.tensor();
  p.block_table = a.tensor();
  p.first_local = a.tensor(), p.query_starts = a.tensor(), p.positions = a.tensor();
  p.plan = a.optional_tensor();
  p.softmax_scale = a.number(), p.range = a.key_range();
}
void read(Arguments& a, AttentionPlanParams& p) {
  p.plan = a.tensor(), p.cache = a.tensor();
  p.block_table = a.tensor(), p.first_local = a.tensor();
  p.query_starts = a.tensor(), p.positions = a.tensor();
  p.heads = a.integer(), p.range = a.key_range();
}
void read(Arguments& a, AttentionPrefillParams& p) {
  p.out = a.tensor(), p.lse = a.tensor(), p.q = a.tensor(), p.kv = a.tensor();
  p.k_rope = a.tensor(), p.segments = a.tensor();
  p.softmax_scale = a.number(), p.range = a.key_range();
}
void read(Arguments& a, CastParams& p) {
  p.out = a.tensor(), p.in = a.tensor(), p.scale = a.optional_tensor();
}
void read(Arguments& a, ClockParams& p) { p.out = a.tensor(); }
void read(Arguments& a, CombineParams& p) {
  p.out = a.tensor(), p.y = a.tensor(), p.place = a.tensor(), p.weights = a.tensor();
  p.identity = a.optional_tensor();
}
void read(Arguments& a, ExpertPlanParams& p) {
  p.order = a.tensor(), p.place = a.tensor(), p.starts = a.tensor(), p.ids = a.tensor();
}
void read(Arguments& a, FillParams& p) { p.out = a.tensor(), p.value = a.number(); }
void read(Arguments& a, FillRandomParams& p) {
  p.out = a.tensor(), p.seed_low = a.integer(), p.seed_high = a.integer();
  p.deviation = a.number();
}
void read(Arguments& a, GatherRowsParams& p) {
  p.out = a.tensor(), p.table = a.tensor(), p.ids = a.tensor();
}
void read(Arguments& a, GroupedLinearParams& p) {
  p.out = a.tensor(), p.x = a.tensor(), p.weight = a.tensor(), p.scale = a.optional_tensor();
  p.starts = a.tensor(), p.order = a.optional_tensor(), p.top_k = a.integer();
}
void read(Arguments& a, HeadLinearParams& p) {
  p.out = a.tensor(), p.x = a.tensor(), p.weight = a.tensor();
}
void read(Arguments& a, LatentStoreParams& p) {
  p.cache = a.tensor(), p.kv = a.tensor(), p.weight = a.tensor(), p.rope_table = a.tensor();
  p.slots = a.tensor(), p.eps = a.number(), p.scale = a.number();
  p.query = a.optional_tensor(), p.query_weight = a.optional_tensor();
  p.query_scale = a.number();
}
void read(Arguments& a, LinearParams& p) {
  p.out = a.tensor(), p.x = a.tensor(), p.weight = a.tensor(), p.scale = a.optional_tensor();
  p.accumulate = a.boolean();
}
void read(Arguments& a, MixAttentionParams& p) {
  p.out = a.tensor(), p.full = a.tensor(), p.streaming = a.tensor(), p.alpha = a.tensor();
}
void read(Arguments& a, MixAttentionBackwardParams& p) {
  p.d_full = a.optional_tensor(), p.d_streaming = a.optional_tensor(), p.d_alpha = a.tensor();
  p.d_out = a.tensor(), p.full = a.tensor(), p.streaming = a.tensor(), p.alpha = a.tensor();
}
void read(Arguments& a, RmsNormParams& p) {
  p.out = a.tensor(), p.x = a.tensor(), p.weight = a.tensor();
  p.eps = a.number(), p.scale = a.number();
}
void read(Arguments& a, RopeParams& p) {
  p.out = a.tensor(), p.x = a.tensor(), p.table = a.tensor();
}
void read(Arguments& a, RopeTableParams& p) {
  p.table = a.tensor(), p.positions = a.tensor(), p.inverse_frequencies = a.tensor();
  p.attention_scale = a.number(), p.exact_angles = a.boolean();
}
void read(Arguments& a, RouteParams& p) {
  p.ids = a.tensor(), p.weights = a.tensor(), p.logits = a.tensor(), p.bias = a.optional_tensor();
  p.scoring = static_cast<Scoring>(a.integer());
  p.group_score = static_cast<GroupScore>(a.integer());
  p.groups = a.integer(), p.top_groups = a.integer();
  p.normalize = a.boolean(), p.scale = a.number();
}
void read(Arguments& a, SampleParams& p) {
  p.tokens = a.tensor(), p.logprobs = a.tensor(), p.top_tokens = a.optional_tensor();
  p.top_logprobs = a.optional_tensor(), p.logits = a.tensor(), p.settings = a.tensor();
  p.integers = a.tensor(), p.seen = a.optional_tensor();
}
void read(Arguments& a, SwigluParams& p) {
  p.out = a.tensor(), p.gate = a.tensor(), p.up = a.tensor();
}

template <class Params>
napi_value run(napi_env env, napi_callback_info info) {
  try {
    Arguments arguments(env, info);
    Params params;
    read(arguments, params);
    arguments.done();
    Ops& ops = arguments.stream().stream().ops();
    params.check(ops.activation());
    ops.run(params);
  } catch (const Error& error) {
    napi_throw_error(env, error.code(), error.what());
  } catch (const std::exception& error) {
    napi_throw_error(env, code::kInternal, error.what());
  }
  return nullptr;
}

template <class Params>
napi_property_descriptor method(const char* name) {
  return {name, nullptr, run<Params>, nullptr, nullptr, nullptr, napi_default_method, nullptr};
}

// "RmsNorm" is stream.RmsNorm; lib/native/ops.ts gives it its TypeScript name and defaults.
#define LOZA_METHOD(Op) method<Op##Params>(#Op),

}  // namespace

std::vector<napi_property_descriptor> operation_methods() {
  return {LOZA_FOR_EACH_OP(LOZA_METHOD)};
}

}  // namespace loza::addon
