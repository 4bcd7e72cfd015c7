#include "ops/adamw/adamw.h"

#include <cmath>

#include "cpu/rows.h"
#include "ops/adamw/factors.h"
#include "ops/cpu_ops.h"

namespace loza {

void AdamwParams::check(DType /*act*/) const {
  const auto fits = [this](const char* name, const Tensor& tensor, DType dtype) {
    loza::check(tensor && tensor.dtype == dtype && tensor.rank == weight.rank &&
                    tensor.shape == weight.shape && tensor.contiguous(),
                name, ": expected contiguous ", name_of(dtype), " of the shape of ", weight,
                ", got ", tensor);
  };
  fits("adamw weight", weight, DType::kF32);
  fits("adamw m", m, DType::kF32);
  fits("adamw v", v, DType::kF32);
  fits("adamw gradient", gradient, DType::kF32);
  if (copy) fits("adamw copy", copy, copy.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32);
  if (clip) expect("adamw clip", clip, DType::kF32, 2);
  loza::check(step >= 1, "adamw: step is ", step, ", the first is 1");
}

void ClipFactorParams::check(DType /*act*/) const {
  expect("clip_factor clip", clip, DType::kF32, 2);
  expect("clip_factor squares", squares, DType::kF32, -1);
  loza::check(limit >= 0, "clip_factor: limit is ", limit);
}

namespace cpu {

namespace {

struct Moments {
  float *weight, *m, *v;
  const float* gradient;
};

LOZA_MULTIVERSION void step_run(const Moments& to, const AdamwFactors& f, float clip,
                                int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; i++) {
    const float g = clip * to.gradient[i];
    const float m = f.beta1 * to.m[i] + (1 - f.beta1) * g;
    const float v = f.beta2 * to.v[i] + (1 - f.beta2) * g * g;
    to.m[i] = m;
    to.v[i] = v;
    to.weight[i] = f.keep * to.weight[i] - f.rate * m / (std::sqrt(v) * f.root + f.eps);
  }
}

template <class T>
LOZA_MULTIVERSION void copy_run(T* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = narrow<T>(in[i]);
}

}  // namespace

void compute(const AdamwParams& params) {
  const float clip = params.clip ? params.clip.as<const float>()[1] : 1.0f;
  if (std::isnan(clip)) return;
  const AdamwFactors factors(params);
  const int64_t count = params.weight.elements(), run = kElementsPerChunk / 4;
  for_each_row((count + run - 1) / run, kElementsPerChunk, [&](int64_t item) {
    const int64_t first = item * run, part = std::min(run, count - first);
    const Moments moments{params.weight.as<float>() + first, params.m.as<float>() + first,
                          params.v.as<float>() + first, params.gradient.as<float>() + first};
    step_run(moments, factors, clip, part);
    if (!params.copy) return;
    with_float_type(params.copy.dtype, [&]<class T>(T) {
      copy_run(params.copy.as<T>() + first, moments.weight, part);
    });
  });
}

void compute(const ClipFactorParams& params) {
  double sum = 0;
  for (int64_t i = 0; i < params.squares.dim(0); i++) sum += params.squares.as<const float>()[i];
  const double norm = std::sqrt(sum);
  auto* clip = params.clip.as<float>();
  clip[0] = static_cast<float>(norm);
  clip[1] = params.limit > 0 && norm > params.limit ? static_cast<float>(params.limit / norm) : 1;
  if (!std::isfinite(clip[0])) clip[1] = NAN;
}

}  // namespace cpu

}  // namespace loza
