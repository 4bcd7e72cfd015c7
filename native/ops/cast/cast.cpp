#include "ops/cast/cast.h"

#include "cpu/convert.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"
#include "ops/linear/linear.h"

namespace loza {

void CastParams::check(DType /*act*/) const {
  loza::check(in && in.dtype != DType::kI32, "cast in: expected f32, bf16 or f8e4m3, got ", in);
  loza::check(out && (out.dtype == DType::kF32 || out.dtype == DType::kBF16) && out.rank == in.rank,
              "cast out: expected f32 or bf16 of the rank of ", in, ", got ", out);
  for (int i = 0; i < in.rank; i++)
    loza::check(out.shape[i] == in.shape[i], "cast: ", in, " does not fit into ", out);
  if (!scale) return;
  expect("cast in with scale", in, DType::kF8E4M3, -1, -1);
  expect("cast scale", scale, DType::kF32, (in.dim(0) + kScaleBlock - 1) / kScaleBlock,
         (in.dim(1) + kScaleBlock - 1) / kScaleBlock);
}

namespace cpu {

namespace {

template <class Out, class In>
LOZA_MULTIVERSION void convert_row(Out* out, const In* in, int64_t width) {
  for (int64_t i = 0; i < width; i++) out[i] = narrow<Out>(widen(in[i]));
}

template <class Out, class In>
void convert_strided(Out* out, int64_t out_stride, const In* in, int64_t in_stride, int64_t width) {
  for (int64_t i = 0; i < width; i++) out[i * out_stride] = narrow<Out>(widen(in[i * in_stride]));
}

template <class Out, class In>
LOZA_MULTIVERSION void scale_run(Out* out, int64_t out_stride, const In* in, int64_t in_stride,
                                 int64_t width, float scale) {
  for (int64_t i = 0; i < width; i++)
    out[i * out_stride] = narrow<Out>(widen(in[i * in_stride]) * scale);
}

// Element offset of a row: every dimension but the last, flattened.
int64_t row_offset(const Tensor& tensor, int64_t row) {
  int64_t offset = 0;
  for (int i = tensor.rank - 2; i >= 0; i--) {
    offset += row % tensor.shape[i] * tensor.strides[i];
    row /= tensor.shape[i];
  }
  return offset;
}

template <class Out, class In>
void convert(const CastParams& params) {
  const auto& [out, in, scale] = params;
  const int64_t width = in.rank > 0 ? in.dim(-1) : 1;
  if (width == 0) return;
  const int64_t out_stride = in.rank > 0 ? out.stride(-1) : 1;
  const int64_t in_stride = in.rank > 0 ? in.stride(-1) : 1;
  for_each_row(in.elements() / width, width, [&](int64_t row) {
    auto* to = out.as<Out>() + row_offset(out, row);
    const auto* from = in.as<const In>() + row_offset(in, row);
    if (scale) {
      const auto* scales = row_of<const float>(scale, row / kScaleBlock);
      for (int64_t i = 0; i < width; i += kScaleBlock)
        scale_run(to + i * out_stride, out_stride, from + i * in_stride, in_stride,
                  std::min(kScaleBlock, width - i), scales[i / kScaleBlock]);
    } else if (out_stride == 1 && in_stride == 1) {
      convert_row(to, from, width);
    } else {
      convert_strided(to, out_stride, from, in_stride, width);
    }
  });
}

}  // namespace

void compute(const CastParams& params) {
  with_float_type(params.out.dtype, [&]<class Out>(Out) {
    with_weight_type(params.in.dtype, [&]<class In>(In) { convert<Out, In>(params); });
  });
}

}  // namespace cpu

}  // namespace loza
