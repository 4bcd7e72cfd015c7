#include "ops/fill/fill.h"

#include "cpu/convert.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void FillParams::check(DType /*act*/) const {
  loza::check(out && out.contiguous() && out.dtype != DType::kF8E4M3,
              "fill out: expected contiguous f32, bf16 or i32, got ", out);
}

namespace cpu {

namespace {

template <class T>
void fill(const Tensor& out, T value) {
  parallel_for(out.elements(), kElementsPerChunk, [&](int64_t begin, int64_t end) {
    std::fill(out.as<T>() + begin, out.as<T>() + end, value);
  });
}

}  // namespace

void compute(const FillParams& params) {
  if (params.out.dtype == DType::kI32) return fill(params.out, static_cast<int32_t>(params.value));
  with_float_type(params.out.dtype, [&]<class T>(T) { fill(params.out, narrow<T>(params.value)); });
}

}  // namespace cpu

}  // namespace loza
