#include "cuda/few_rows.h"

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

Tensor matrix(void* data, DType dtype, int64_t rows, int64_t columns, int64_t stride) {
  Tensor view;
  view.data = data;
  view.dtype = dtype;
  view.rank = 2;
  view.shape = {rows, columns};
  view.strides = {stride, 1};
  return view;
}

// Where rows are gathered, they are quantised in the order of the slots; slots of no expert are left.
void quantise(StreamProduct& product, CudaStream& stream, const char* operation) {
  const Tensor x = product.x;
  const int64_t rows = product.out.dim(0), k = x.dim(1);
  const QuantisedRows layout = quantised_rows(rows, k);
  std::byte* scratch = stream.scratch(layout.bytes);
  auto* scale = reinterpret_cast<float*>(scratch + layout.scale_offset);
  launch_quantise(
      {.x = x.data,
       .order = product.order.as<int32_t>(),
       .rows_in_use =
           product.starts ? product.starts.as<int32_t>() + product.weight.dim(0) : nullptr,
       .out = scratch,
       .scale = scale,
       .x_stride = x.stride(0),
       .rows = rows,
       .k = k,
       .scale_stride = layout.scale_stride,
       .top_k = product.top_k},
      stream.handle(), operation);
  product.x = matrix(scratch, DType::kF8E4M3, rows, k, k);
  product.x_scale = matrix(scale, DType::kF32, (k + 127) / 128, rows, layout.scale_stride);
  product.order = {};
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
