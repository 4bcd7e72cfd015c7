#include "ops/mix_attention/mix_attention.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"

namespace loza {

namespace {

void expect_mixed(const char* name, const Tensor& tensor, DType dtype, const Tensor& like) {
  expect(name, tensor, dtype, like.dim(0), like.dim(1), like.dim(2));
  check(tensor.contiguous(), name, ": expected a contiguous tensor, got ", tensor);
}

void expect_sources(const Tensor& full, const Tensor& streaming, const Tensor& alpha, DType act) {
  const DType dtype = full.dtype == act ? act : DType::kF32;
  expect("mix_attention: full", full, dtype, -1, -1, -1);
  expect_mixed("mix_attention: full", full, dtype, full);
  expect_mixed("mix_attention: streaming", streaming, dtype, full);
  expect("mix_attention: alpha", alpha, DType::kF32, 1);
}

}  // namespace

void MixAttentionParams::check(DType act) const {
  expect_sources(full, streaming, alpha, act);
  expect_mixed("mix_attention: out", out, act, full);
}

void MixAttentionBackwardParams::check(DType act) const {
  expect_sources(full, streaming, alpha, act);
  expect_mixed("mix_attention_backward: d_out", d_out, act, full);
  if (d_full) expect_mixed("mix_attention_backward: d_full", d_full, act, full);
  if (d_streaming) expect_mixed("mix_attention_backward: d_streaming", d_streaming, act, full);
  expect("mix_attention_backward: d_alpha", d_alpha, DType::kF32, 1);
}

namespace cpu {

namespace {

constexpr int64_t kChunk = 16384;  // elements whose products make one partial sum

// Where both are equal their difference is 0, so that alpha moves nothing.
LOZA_MULTIVERSION void mix(float* out, const float* full, const float* streaming, float alpha,
                           int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const float difference = full[i] - streaming[i];
    out[i] = difference == 0 ? full[i] : streaming[i] + alpha * difference;
  }
}

LOZA_MULTIVERSION void scale(float* out, const float* in, float factor, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = factor * in[i];
}

LOZA_MULTIVERSION float product(const float* d_out, const float* full, const float* streaming,
                                int64_t count) {
  simd::f32x8 sum = {};
  int64_t i = 0;
  for (; i + simd::kWidth <= count; i += simd::kWidth)
    sum += simd::load(d_out + i) * (simd::load(full + i) - simd::load(streaming + i));
  float rest = 0;
  for (; i < count; i++) rest += d_out[i] * (full[i] - streaming[i]);
  return simd::sum(sum) + rest;
}

// body(chunk, first, count) over all elements.
template <class Body>
void for_each_chunk(int64_t elements, const Body& body) {
  parallel_for((elements + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      body(i, i * kChunk, std::min(kChunk, elements - i * kChunk));
  });
}

}  // namespace

void compute(const MixAttentionParams& params) {
  const float alpha = *params.alpha.as<const float>();
  const auto *full = params.full.as<const float>(), *streaming = params.streaming.as<const float>();
  auto* out = params.out.as<float>();
  for_each_chunk(params.out.elements(), [&](int64_t, int64_t first, int64_t count) {
    if (alpha == 0 || alpha == 1)
      std::copy_n((alpha == 1 ? full : streaming) + first, count, out + first);
    else
      mix(out + first, full + first, streaming + first, alpha, count);
  });
}

void compute(const MixAttentionBackwardParams& params) {
  const float alpha = *params.alpha.as<const float>();
  const auto *full = params.full.as<const float>(), *streaming = params.streaming.as<const float>();
  const auto* d_out = params.d_out.as<const float>();
  const int64_t elements = params.d_out.elements();
  std::vector<float> partial((elements + kChunk - 1) / kChunk);
  for_each_chunk(elements, [&](int64_t chunk, int64_t first, int64_t count) {
    partial[chunk] = product(d_out + first, full + first, streaming + first, count);
    if (params.d_full) scale(params.d_full.as<float>() + first, d_out + first, alpha, count);
    if (params.d_streaming)
      scale(params.d_streaming.as<float>() + first, d_out + first, 1 - alpha, count);
  });
  double sum = 0;
  for (const float part : partial) sum += part;
  *params.d_alpha.as<float>() += static_cast<float>(sum);
}

}  // namespace cpu

}  // namespace loza
