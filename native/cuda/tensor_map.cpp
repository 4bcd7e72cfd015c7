#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <array>

#include "cuda/check.h"

namespace loza::cuda {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver that the runtime loaded, so that the addon needs no driver library to load.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &status),
        "cuTensorMapEncodeTiled");
  if (function == nullptr || status != cudaDriverEntryPointSuccess)
    fail(code::kCuda, "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
  return reinterpret_cast<Encode>(function);
}

CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF8E4M3:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::kI32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
  }
  fail(code::kInternal, "unknown dtype ", static_cast<int32_t>(dtype));
}

CUtensorMapSwizzle swizzle_of(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::kNone:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case Swizzle::k32Bytes:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64Bytes:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128Bytes:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  fail(code::kInternal, "unknown swizzle ", static_cast<int>(swizzle));
}

}  // namespace

TensorMap make_tensor_map(DType dtype, const void* data, std::span<const uint64_t> sizes,
                          std::span<const uint64_t> strides, std::span<const uint32_t> box,
                          Swizzle swizzle) {
  static const Encode encode = find_encode();
  const size_t rank = sizes.size();
  loza::check(rank >= 1 && rank <= 5 && strides.size() + 1 == rank && box.size() == rank,
              "a tensor map of ", rank, " sizes, ", strides.size(), " strides and a box of ",
              box.size());
  const std::array<uint32_t, 5> steps{1, 1, 1, 1, 1};
  TensorMap map;
  const CUresult result = encode(
      &map, type_of(dtype), static_cast<uint32_t>(rank), const_cast<void*>(data), sizes.data(),
      strides.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(swizzle),
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail(code::kCuda, "cuTensorMapEncodeTiled: driver error ", static_cast<int>(result),
         " for a tensor map of rank ", rank);
  return map;
}

}  // namespace loza::cuda
