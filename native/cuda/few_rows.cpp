#include "cuda/few_rows.h"

#include <array>

#include "cuda/quantise.h"

namespace loza::cuda {

namespace {

// Whether all rows start at a multiple of 16 bytes and none overlap. The stride of an extent of one is
// never used.
bool streamable(const Tensor& tensor) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0) return false;
  for (int i = 0; i + 1 < tensor.rank; i++) {
    if (tensor.dim(i) <= 1) continue;
    if (tensor.stride(i) < tensor.dim(-1)) return false;
    if (tensor.stride(i) * size_of(tensor.dtype) % 16 != 0) return false;
  }
  return true;
}

Tensor matrix(void* data, DType dtype, std::array<int64_t, 2> shape,
              std::array<int64_t, 2> strides) {
  Tensor view;
  view.data = data;
  view.dtype = dtype;
  view.rank = 2;
  view.shape = {shape[0], shape[1]};
  view.strides = {strides[0], strides[1]};
  return view;
}

// Rows of x that are slots end where the experts' slots do; rows that are gathered are all needed.
void quantise(StreamProduct& product, CudaStream& stream, const char* operation) {
  const Tensor x = product.x;
  const int64_t rows = x.dim(0), k = x.dim(1);
  const bool slots = product.starts && !product.order;
  const QuantisedRows layout = quantised_rows(rows, k);
  std::byte* scratch = stream.scratch(layout.bytes);
  auto* scale = reinterpret_cast<float*>(scratch + layout.scale_offset);
  launch_quantise(
      {.x = x.data,
       .order = nullptr,
       .rows_in_use = slots ? product.starts.as<int32_t>() + product.weight.dim(0) : nullptr,
       .out = scratch,
       .scale = scale,
       .x_stride = x.stride(0),
       .rows = rows,
       .k = k,
       .scale_stride = layout.scale_stride},
      stream.handle(), operation);
  product.x = matrix(scratch, DType::kF8E4M3, {rows, k}, {k, 1});
  product.x_scale = matrix(scale, DType::kF32, {rows, (k + 127) / 128}, {1, layout.scale_stride});
}

}  // namespace

bool multiply_few_rows(const StreamProduct& product, CudaStream& stream, const char* operation) {
  const bool quantised = product.weight.dtype == DType::kF8E4M3;
  if (product.weight.dtype == DType::kF32) return false;
  if (!product.starts && product.out.dim(0) > kFewRows) return false;
  if (!streamable(product.x) || !streamable(product.weight)) return false;
  if (quantised && product.x.dim(1) % 16 != 0) return false;
  StreamProduct ready = product;
  if (quantised) quantise(ready, stream, operation);
  launch_stream(ready, plan_stream(ready, stream.multiprocessors()), stream.handle(), operation);
  return true;
}

}  // namespace loza::cuda
