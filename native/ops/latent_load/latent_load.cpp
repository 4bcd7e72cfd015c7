#include "ops/latent_load/latent_load.h"

#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void LatentLoadParams::check(DType act) const {
  cpu::expect_float("latent_load cache", cache, -1, -1);
  expect("latent_load slots", slots, DType::kI32, -1);
  expect("latent_load out", out, act, slots.dim(0), cache.dim(1));
}

namespace cpu {

void compute(const LatentLoadParams& params) {
  const auto& [out, cache, slots] = params;
  const int64_t width = cache.dim(1);
  with_float_type(cache.dtype, [&]<class T>(T) {
    for_each_row(slots.dim(0), width, [&](int64_t row) {
      const int32_t slot = slots.as<const int32_t>()[row];
      check(slot >= 0 && slot < cache.dim(0), "latent_load: slot ", slot, " is outside a cache of ",
            cache.dim(0), " slots");
      widen_row(row_of<float>(out, row), row_of<const T>(cache, slot), width);
    });
  });
}

}  // namespace cpu

}  // namespace loza
