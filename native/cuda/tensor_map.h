// Descriptions of tensors for bulk tensor copies (TMA), made on the host.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace loza::cuda {

using TensorMap = CUtensorMap;

// How a box lies in shared memory: rows as they are, or 16-byte chunks permuted within each row of
// `bytes` (which must be the box's inner bytes) so that wgmma reads eight rows without conflicts.
enum class Swizzle { kNone, k32Bytes, k64Bytes, k128Bytes };

// A view for copies of boxes. Sizes and box in elements, innermost first; strides in bytes of all but
// the innermost, multiples of 16. `data` is aligned to 16 bytes. At most 5 dimensions.
// Throws ERR_LOZA_CUDA when the driver refuses it.
TensorMap make_tensor_map(DType dtype, const void* data, std::span<const uint64_t> sizes,
                          std::span<const uint64_t> strides, std::span<const uint32_t> box,
                          Swizzle swizzle);

}  // namespace loza::cuda
