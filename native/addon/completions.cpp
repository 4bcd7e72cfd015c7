#include "addon/completions.h"

namespace loza::addon {

Napi::Error to_js(Napi::Env env, const Error& error) {
  Napi::Error js = Napi::Error::New(env, error.what());
  js.Set("code", Napi::String::New(env, error.code()));
  return js;
}

std::shared_ptr<Completions> Completions::create(Napi::Env env) {
  auto completions = std::make_shared<Completions>();
  completions->queue_ = Queue::New(env, "loza completions", 0, 1);
  completions->queue_.Unref(env);
  return completions;
}

Completions::Pending Completions::add(Napi::Env env, Result result) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  if (pending_++ == 0) queue_.Ref(env);
  auto settle = [self = shared_from_this(), deferred,
                 result = std::move(result)](std::optional<Error> error) {
    self->post(new Settlement{deferred, result, std::move(error), self});
  };
  return {deferred->Promise(), std::move(settle)};
}

void Completions::post(Settlement* settlement) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (stopped_ || queue_.NonBlockingCall(settlement) != napi_ok) delete settlement;
}

void Completions::deliver(Napi::Env env, Napi::Function, std::nullptr_t*, Settlement* settlement) {
  const std::unique_ptr<Settlement> owned(settlement);
  if (env == nullptr) return;  // torn down: only the memory is left to free
  const Napi::HandleScope scope(env);
  if (--owned->owner->pending_ == 0) owned->owner->queue_.Unref(env);
  try {
    if (owned->error)
      owned->deferred->Reject(to_js(env, *owned->error).Value());
    else
      owned->deferred->Resolve(owned->result(env));
  } catch (const Napi::Error& error) {
    owned->deferred->Reject(error.Value());
  }
}

void Completions::stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (stopped_) return;
  stopped_ = true;
  queue_.Release();
}

}  // namespace loza::addon
