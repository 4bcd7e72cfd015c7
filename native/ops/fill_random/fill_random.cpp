#include "ops/fill_random/fill_random.h"

#include "cpu/convert.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void FillRandomParams::check(DType /*act*/) const {
  loza::check(out && out.contiguous() && out.dtype != DType::kI32,
              "fill_random out: expected contiguous f32, bf16 or f8e4m3, got ", out);
  loza::check(reinterpret_cast<uintptr_t>(out.data) % (2 * size_of(out.dtype)) == 0,
              "fill_random out: not aligned to two elements: ", out);
}

namespace cpu {

namespace {

template <class T>
void fill_random(const FillRandomParams& params) {
  auto* const out = params.out.as<T>();
  const int64_t count = params.out.elements();
  const uint64_t seed = params.seed();
  const float unit = params.unit();
  parallel_for((count + 1) / 2, kElementsPerChunk, [=](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; pair++) {
      const auto [first, second] = random_pair(seed, pair);
      out[2 * pair] = narrow<T>(static_cast<float>(first) * unit);
      if (2 * pair + 1 < count) out[2 * pair + 1] = narrow<T>(static_cast<float>(second) * unit);
    }
  });
}

}  // namespace

void compute(const FillRandomParams& params) {
  with_weight_type(params.out.dtype, [&]<class T>(T) { fill_random<T>(params); });
}

}  // namespace cpu

}  // namespace loza
