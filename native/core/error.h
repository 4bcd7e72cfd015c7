// One exception type for the whole native side. The addon turns it into a LozaError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace loza {

// Stable codes, the same strings as LozaErrorCode in lib/errors.ts.
namespace code {
inline constexpr const char* kInvalidArg = "ERR_LOZA_INVALID_ARG";
inline constexpr const char* kNotFound = "ERR_LOZA_NOT_FOUND";
inline constexpr const char* kIo = "ERR_LOZA_IO";
inline constexpr const char* kOutOfMemory = "ERR_LOZA_OUT_OF_MEMORY";
inline constexpr const char* kDeviceUnavailable = "ERR_LOZA_DEVICE_UNAVAILABLE";
inline constexpr const char* kClosed = "ERR_LOZA_CLOSED";
inline constexpr const char* kInternal = "ERR_LOZA_INTERNAL";
}  // namespace code

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

// Throws an Error whose message is the parts, printed one after the other.
template <class... Parts>
[[noreturn]] void fail(const char* code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(code, message.str());
}

// Checks what a caller inside this project promised; a failure is a bug, not a user's mistake.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) fail(code::kInternal, parts...);
}

}  // namespace loza
