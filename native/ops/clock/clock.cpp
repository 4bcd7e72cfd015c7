#include "ops/clock/clock.h"

#include <chrono>

#include "ops/cpu_ops.h"

namespace loza {

void ClockParams::check(DType /*act*/) const {
  expect("clock out", out, DType::kI32, 2);
  loza::check(out.contiguous(), "clock out: not contiguous: ", out);
}

namespace cpu {

void compute(const ClockParams& params) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const auto count =
      static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
  params.out.as<uint32_t>()[0] = static_cast<uint32_t>(count);
  params.out.as<uint32_t>()[1] = static_cast<uint32_t>(count >> 32);
}

}  // namespace cpu

}  // namespace loza
