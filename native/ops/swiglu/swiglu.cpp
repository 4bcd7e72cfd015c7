#include "ops/swiglu/swiglu.h"

#include "cpu/rows.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"

namespace loza {

void SwigluParams::check(DType act) const {
  expect("swiglu gate", gate, act, -1, -1);
  expect("swiglu up", up, act, gate.dim(0), gate.dim(1));
  expect("swiglu out", out, act, gate.dim(0), gate.dim(1));
}

namespace cpu {

namespace {

LOZA_INLINE simd::f32x8 silu(simd::f32x8 x) { return x / (1.0f + simd::exp(-x)); }

LOZA_MULTIVERSION void swiglu_row(float* out, const float* gate, const float* up, int64_t width) {
  int64_t i = 0;
  for (; i + simd::kWidth <= width; i += simd::kWidth)
    simd::store(out + i, silu(simd::load(gate + i)) * simd::load(up + i));
  const int64_t rest = width - i;
  const auto last = silu(simd::load_first(gate + i, rest)) * simd::load_first(up + i, rest);
  simd::store_first(out + i, last, rest);
}

}  // namespace

void compute(const SwigluParams& params) {
  const int64_t width = params.gate.dim(1);
  for_each_row(params.gate.dim(0), width, [&](int64_t row) {
    swiglu_row(row_of<float>(params.out, row), row_of<const float>(params.gate, row),
               row_of<const float>(params.up, row), width);
  });
}

}  // namespace cpu

}  // namespace loza
