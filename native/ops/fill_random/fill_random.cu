// out = random, everywhere: a thread makes two neighbouring elements from one hash.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerMultiprocessor = 16;

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_random_kernel(T* out, int64_t count, uint64_t seed, float unit) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t pairs = ceil_div(count, 2);
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; pair < pairs;
       pair += step) {
    const RandomPair random = random_pair(seed, pair);
    const T first = narrow<T>(static_cast<float>(random.first) * unit);
    const T second = narrow<T>(static_cast<float>(random.second) * unit);
    if (2 * pair + 1 < count)
      reinterpret_cast<Pair<T>*>(out)[pair] = {first, second};
    else
      out[2 * pair] = first;
  }
}

}  // namespace

void launch(const FillRandomParams& params, CudaStream& stream) {
  const int64_t count = params.out.elements();
  if (count == 0) return;
  const int64_t blocks = std::min(ceil_div(ceil_div(count, 2), kThreads),
                                  stream.multiprocessors() * kBlocksPerMultiprocessor);
  with_weight_type(params.out.dtype, [&]<class T>(T) {
    fill_random_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream.handle()>>>(
        params.out.as<T>(), count, params.seed(), params.unit());
  });
  check_launch("fill_random");
}

}  // namespace loza::cuda
