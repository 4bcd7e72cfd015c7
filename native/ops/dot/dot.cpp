#include "ops/dot/dot.h"

#include <vector>

#include "cpu/rms.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void DotParams::check(DType /*act*/) const {
  expect("dot out", out, DType::kF32, 1);
  const auto good = [](const Tensor& tensor) {
    return tensor && (tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16) &&
           tensor.contiguous();
  };
  loza::check(good(x), "dot x: expected contiguous f32 or bf16, got ", x);
  loza::check(good(y) && y.rank == x.rank && y.shape == x.shape,
              "dot y: expected contiguous f32 or bf16 of the shape of ", x, ", got ", y);
}

namespace cpu {

namespace {

constexpr int64_t kBlock = 4096;  // elements of one partial sum

template <class X, class Y>
LOZA_MULTIVERSION double dot_block(const X* x, const Y* y, int64_t count) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++)
      lanes[lane] += widen(x[i + lane]) * widen(y[i + lane]);
  double total = 0;
  for (; i < count; i++) total += static_cast<double>(widen(x[i])) * widen(y[i]);
  for (const float lane : lanes) total += lane;
  return total;
}

}  // namespace

void compute(const DotParams& params) {
  thread_local std::vector<double> kept;
  std::vector<double>& partial = kept;  // the lambda runs on other threads too
  const int64_t count = params.x.elements();
  partial.resize((count + kBlock - 1) / kBlock);
  with_float_type(params.x.dtype, [&]<class X>(X) {
    with_float_type(params.y.dtype, [&]<class Y>(Y) {
      for_each_row(static_cast<int64_t>(partial.size()), kBlock, [&](int64_t block) {
        const int64_t first = block * kBlock;
        partial[block] = dot_block(params.x.as<const X>() + first, params.y.as<const Y>() + first,
                                   std::min(kBlock, count - first));
      });
    });
  });
  double total = 0;
  for (const double value : partial) total += value;
  *params.out.as<float>() = static_cast<float>(total);
}

}  // namespace cpu

}  // namespace loza
