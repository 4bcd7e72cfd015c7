// Promises that are settled by a stream's worker thread.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "core/error.h"

namespace loza::addon {

// The JavaScript error that carries a code; lib/errors.ts makes a LozaError of it.
Napi::Error to_js(Napi::Env env, const Error& error);

// Runs `body` and turns any C++ exception into a JavaScript one.
template <class Body>
auto guarded(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw to_js(env, error);
  } catch (const std::bad_alloc&) {
    throw to_js(env, Error(code::kOutOfMemory, "the addon ran out of memory"));
  }
}

// One per environment (main thread or worker). Promises stay pending for good when the environment
// is torn down first: nobody is left to see them.
class Completions : public std::enable_shared_from_this<Completions> {
 public:
  using Result = std::function<Napi::Value(Napi::Env)>;

  static std::shared_ptr<Completions> create(Napi::Env env);

  // A promise and the function, callable once from any thread, that settles it.
  struct Pending {
    Napi::Promise promise;
    std::function<void(std::optional<Error>)> settle;
  };
  Pending add(Napi::Env env, Result result);

  void stop();  // the environment is going away

 private:
  struct Settlement {
    std::shared_ptr<Napi::Promise::Deferred> deferred;
    Result result;
    std::optional<Error> error;
    std::shared_ptr<Completions> owner;
  };
  static void deliver(Napi::Env env, Napi::Function, std::nullptr_t*, Settlement* settlement);
  using Queue = Napi::TypedThreadSafeFunction<std::nullptr_t, Settlement, deliver>;

  void post(Settlement* settlement);

  std::mutex mutex_;
  bool stopped_ = false;
  int pending_ = 0;  // JavaScript thread only: the process stays alive while there are any
  Queue queue_;
};

}  // namespace loza::addon
