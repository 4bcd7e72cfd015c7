#include "ops/blend/blend.h"

#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void BlendParams::check(DType /*act*/) const {
  loza::check(out && (out.rank == 1 || out.rank == 2), "blend out: expected rank 1 or 2, got ",
              out);
  const auto fits = [this](const char* name, const Tensor& tensor) {
    if (out.rank == 1) return cpu::expect_float(name, tensor, out.dim(0));
    cpu::expect_float(name, tensor, out.dim(0), out.dim(1));
  };
  fits("blend out", out);
  fits("blend x", x);
  if (y) fits("blend y", y);
  loza::check(y || b == 0, "blend: y is absent, but b is ", b);
}

namespace cpu {

namespace {

template <class Out, class X>
LOZA_MULTIVERSION void scale_row(Out* out, const X* x, float a, int64_t width) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; i++) out[i] = narrow<Out>(a * widen(x[i]));
}

template <class Out, class X, class Y>
LOZA_MULTIVERSION void blend_row(Out* out, const X* x, const Y* y, float a, float b,
                                 int64_t width) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; i++) out[i] = narrow<Out>(a * widen(x[i]) + b * widen(y[i]));
}

int64_t offset(const Tensor& tensor, int64_t row) {
  return tensor.rank == 2 ? row * tensor.stride(0) : 0;
}

template <class Out, class X, class Y>
void blend(const BlendParams& params) {
  const auto& [out, x, y, a, b] = params;
  const int64_t width = out.dim(-1), rows = out.rank == 2 ? out.dim(0) : 1;
  // A vector is one row: cut into as many as threads want.
  const int64_t part = out.rank == 2 ? width : std::min(width, kElementsPerChunk);
  const int64_t parts = part == 0 ? 0 : (width + part - 1) / part;
  for_each_row(rows * parts, part, [&](int64_t item) {
    const int64_t row = item / parts, first = item % parts * part;
    const int64_t columns = std::min(part, width - first);
    auto* to = params.out.as<Out>() + offset(params.out, row) + first;
    const auto* from = params.x.as<const X>() + offset(params.x, row) + first;
    if (params.b == 0) return scale_row(to, from, params.a, columns);
    const auto* other = params.y.as<const Y>() + offset(params.y, row) + first;
    blend_row(to, from, other, params.a, params.b, columns);
  });
}

}  // namespace

void compute(const BlendParams& params) {
  with_float_type(params.out.dtype, [&]<class Out>(Out) {
    with_float_type(params.x.dtype, [&]<class X>(X) {
      with_float_type(params.y ? params.y.dtype : DType::kF32,
                      [&]<class Y>(Y) { blend<Out, X, Y>(params); });
    });
  });
}

}  // namespace cpu

}  // namespace loza
