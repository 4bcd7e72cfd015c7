// out = value, everywhere, 16 bytes a thread.
#include <bit>

#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerMultiprocessor = 8;

// `word` is the value, twice where it takes two bytes. The ends that no 16 bytes cover are filled
// element by element.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(Element* out, int64_t head, int64_t vectors, int64_t count, uint32_t word) {
  constexpr int64_t kPerVector = 16 / sizeof(Element);
  launch_dependents();
  wait_for_prerequisites();
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  auto* body = reinterpret_cast<uint4*>(out + head);
  for (int64_t i = thread; i < vectors; i += step) body[i] = make_uint4(word, word, word, word);
  const int64_t tail = head + vectors * kPerVector;
  if (thread < head) out[thread] = static_cast<Element>(word);
  if (thread < count - tail) out[tail + thread] = static_cast<Element>(word);
}

template <class Element>
void fill(const Tensor& out, uint32_t word, CudaStream& stream) {
  const int64_t count = out.elements();
  const auto address = reinterpret_cast<uintptr_t>(out.data);
  const int64_t to_boundary = static_cast<int64_t>((16 - address % 16) % 16 / sizeof(Element));
  const int64_t head = std::min(count, to_boundary);
  const int64_t vectors = (count - head) * static_cast<int64_t>(sizeof(Element)) / 16;
  const int64_t blocks = std::clamp<int64_t>(ceil_div(vectors, kThreads), 1,
                                             stream.multiprocessors() * kBlocksPerMultiprocessor);
  launch_kernel("fill", fill_kernel<Element>, {static_cast<unsigned>(blocks), kThreads},
                stream.handle(), out.as<Element>(), head, vectors, count, word);
}

}  // namespace

void launch(const FillParams& params, CudaStream& stream) {
  const auto& [out, value] = params;
  if (out.elements() == 0) return;
  if (out.dtype == DType::kBF16) {
    const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    fill<uint16_t>(out, bits << 16 | bits, stream);
  } else {
    const bool integer = out.dtype == DType::kI32;
    const auto bits = integer ? static_cast<uint32_t>(static_cast<int32_t>(value))
                              : std::bit_cast<uint32_t>(value);
    fill<uint32_t>(out, bits, stream);
  }
}

}  // namespace loza::cuda
