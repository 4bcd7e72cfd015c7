// out = in, converted, or in * scale of its 128 x 128 block; both may be strided. 8 elements a
// thread where the last dimension of both is contiguous and aligned, else one. Where nothing is
// converted and both are one run of memory, it is a copy: the copy engine is faster than a kernel
// where one side is the host's memory (54 against 10 GB/s out, 49 in, 9 MB at a time).
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"
#include "ops/linear/linear.h"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerMultiprocessor = 16;
constexpr int kOuter = Tensor::kMaxRank - 1;

template <class Out, class In>
struct CastArgs {
  Out* out;
  const In* in;
  int64_t items;          // of kCount elements
  int64_t items_per_row;  // a row is the last dimension
  int64_t shape[kOuter];  // of the other dimensions; missing ones are 1
  int64_t out_strides[kOuter], in_strides[kOuter];
  int64_t out_step, in_step;  // strides of the last dimension
  Rows<const float> scale;    // [ceil(rows / 128), ceil(width / 128)], or null
};

template <int kCount, class Out, class In>
__global__ void __launch_bounds__(kThreads) cast_kernel(CastArgs<Out, In> args) {
  launch_dependents();
  wait_for_prerequisites();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; item < args.items; item += step) {
    // The divisions are skipped where they are not needed: they cost as much as the conversion.
    const int64_t row = args.items == args.items_per_row ? 0 : item / args.items_per_row;
    const int64_t column = (item - row * args.items_per_row) * kCount;
    Out* out = args.out + column * args.out_step;
    const In* in = args.in + column * args.in_step;
    int64_t rest = row;
#pragma unroll
    for (int i = kOuter - 1; i >= 0; i--) {
      if (args.shape[i] == 1) continue;
      const int64_t next = rest < args.shape[i] ? 0 : rest / args.shape[i];
      const int64_t at = rest - next * args.shape[i];
      out += at * args.out_strides[i];
      in += at * args.in_strides[i];
      rest = next;
    }
    float values[kCount];
    load(values, in);
    if (args.scale.data != nullptr) {
      const float scale = args.scale[row / kScaleBlock][column / kScaleBlock];
#pragma unroll
      for (int j = 0; j < kCount; j++) values[j] *= scale;
    }
    store(out, values);
  }
}

// Merges neighbouring dimensions that are one run of memory in both tensors: fewer divisions.
void merge_dimensions(Tensor& out, Tensor& in) {
  for (int i = in.rank - 2; i >= 0; i--) {
    const int64_t inner = in.shape[i + 1];
    const bool runs =
        in.strides[i] == inner * in.strides[i + 1] && out.strides[i] == inner * out.strides[i + 1];
    if (!runs) continue;
    for (Tensor* tensor : {&out, &in}) {
      tensor->shape[i] *= inner;
      tensor->strides[i] = tensor->strides[i + 1];
      for (int j = i + 1; j + 1 < tensor->rank; j++) {
        tensor->shape[j] = tensor->shape[j + 1];
        tensor->strides[j] = tensor->strides[j + 1];
      }
      tensor->rank--;
    }
  }
}

template <int kCount, class Out, class In>
void launch_typed(const Tensor& out, const Tensor& in, const Tensor& scale, CudaStream& stream) {
  const int64_t items = in.elements() / kCount;
  CastArgs<Out, In> args{.out = out.as<Out>(),
                         .in = in.as<const In>(),
                         .items = items,
                         .items_per_row = in.dim(-1) / kCount,
                         .out_step = out.stride(-1),
                         .in_step = in.stride(-1),
                         .scale = rows_of<const float>(scale)};
  for (int i = 0; i < kOuter; i++) {
    const int from = i - (kOuter - (in.rank - 1));
    args.shape[i] = from < 0 ? 1 : in.shape[from];
    args.out_strides[i] = from < 0 ? 0 : out.strides[from];
    args.in_strides[i] = from < 0 ? 0 : in.strides[from];
  }
  const int64_t blocks = std::min<int64_t>(ceil_div(items, kThreads),
                                           stream.multiprocessors() * kBlocksPerMultiprocessor);
  launch_kernel("cast", cast_kernel<kCount, Out, In>, {static_cast<unsigned>(blocks), kThreads},
                stream.handle(), args);
}

}  // namespace

void launch(const CastParams& params, CudaStream& stream) {
  Tensor out = params.out, in = params.in;
  if (in.elements() == 0) return;
  for (Tensor* tensor : {&out, &in}) {
    if (tensor->rank > 0) continue;  // a scalar is a vector of one
    tensor->rank = 1;
    tensor->shape[0] = tensor->strides[0] = 1;
  }
  if (!params.scale) merge_dimensions(out, in);
  const bool is_run = out.rank == 1 && out.strides[0] == 1 && in.strides[0] == 1;
  if (is_run && out.dtype == in.dtype) {
    check(cudaMemcpyAsync(out.data, in.data, static_cast<size_t>(in.bytes()), cudaMemcpyDefault,
                          stream.handle()),
          "cudaMemcpyAsync");
    return;
  }
  with_float_type(out.dtype, [&]<class Out>(Out) {
    with_weight_type(in.dtype, [&]<class In>(In) {
      with_count(vectorisable(out) && vectorisable(in), [&](auto count) {
        launch_typed<decltype(count)::value, Out, In>(out, in, params.scale, stream);
      });
    });
  });
}

}  // namespace loza::cuda
