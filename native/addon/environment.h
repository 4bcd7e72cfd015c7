// What the addon keeps for one JavaScript environment. No state is shared between environments.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "addon/completions.h"
#include "core/stream.h"

namespace loza::addon {

class Environment {
 public:
  explicit Environment(Napi::Env env);
  ~Environment();

  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  // Streams are closed before the environment ends, so that no thread of ours outlives it.
  void watch(const std::shared_ptr<Stream>& stream);

  std::shared_ptr<Completions> completions;
  Napi::FunctionReference arena_class;
  Napi::FunctionReference graph_class;
  Napi::FunctionReference stream_class;

 private:
  static void clean_up(Environment* environment);

  std::vector<std::weak_ptr<Stream>> streams_;
};

}  // namespace loza::addon
