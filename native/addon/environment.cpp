#include "addon/environment.h"

#include <algorithm>

namespace loza::addon {

Environment::Environment(Napi::Env env) : completions(Completions::create(env)) {
  env.AddCleanupHook(clean_up, this);
}

Environment::~Environment() { clean_up(this); }

void Environment::watch(const std::shared_ptr<Stream>& stream) {
  std::erase_if(streams_, [](const auto& watched) { return watched.expired(); });
  streams_.push_back(stream);
}

void Environment::clean_up(Environment* environment) {
  for (const auto& watched : std::exchange(environment->streams_, {}))
    if (const auto stream = watched.lock()) stream->close();
  environment->completions->stop();
}

}  // namespace loza::addon
