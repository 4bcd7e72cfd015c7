#include "ops/swiglu_gradient/swiglu_gradient.h"

#include "cpu/rows.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"

namespace loza {

void SwigluGradientParams::check(DType act) const {
  expect("swiglu gradient: dy", dy, act, -1, -1);
  expect("swiglu gradient: gate", gate, act, dy.dim(0), dy.dim(1));
  expect("swiglu gradient: up", up, act, dy.dim(0), dy.dim(1));
  expect("swiglu gradient: dgate", dgate, act, dy.dim(0), dy.dim(1));
  expect("swiglu gradient: dup", dup, act, dy.dim(0), dy.dim(1));
}

namespace cpu {

namespace {

struct Row {
  float *dgate, *dup;
  const float *dy, *gate, *up;
};

LOZA_INLINE void gradient(simd::f32x8& dgate, simd::f32x8& dup, simd::f32x8 dy, simd::f32x8 gate,
                          simd::f32x8 up) {
  const simd::f32x8 s = 1.0f / (1.0f + simd::exp(-gate));
  dgate = dy * up * s * (1.0f + gate * (1.0f - s));
  dup = dy * gate * s;
}

LOZA_MULTIVERSION void swiglu_gradient_row(const Row& row, int64_t width) {
  simd::f32x8 dgate, dup;
  int64_t i = 0;
  for (; i + simd::kWidth <= width; i += simd::kWidth) {
    gradient(dgate, dup, simd::load(row.dy + i), simd::load(row.gate + i), simd::load(row.up + i));
    simd::store(row.dgate + i, dgate);
    simd::store(row.dup + i, dup);
  }
  const int64_t rest = width - i;
  if (rest == 0) return;
  gradient(dgate, dup, simd::load_first(row.dy + i, rest), simd::load_first(row.gate + i, rest),
           simd::load_first(row.up + i, rest));
  simd::store_first(row.dgate + i, dgate, rest);
  simd::store_first(row.dup + i, dup, rest);
}

}  // namespace

void compute(const SwigluGradientParams& params) {
  const int64_t width = params.dy.dim(1);
  for_each_row(params.dy.dim(0), 4 * width, [&](int64_t row) {
    swiglu_gradient_row({row_of<float>(params.dgate, row), row_of<float>(params.dup, row),
                         row_of<const float>(params.dy, row), row_of<const float>(params.gate, row),
                         row_of<const float>(params.up, row)},
                        width);
  });
}

}  // namespace cpu

}  // namespace loza
