// Number formats of tensors as C++ types, and their conversions to and from fp32. All of it is free
// of branches, so that loops over it vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/simd.h"

namespace loza::cpu {

using simd::Bf16;
using simd::F8E4M3;

inline float widen(float value) { return value; }

inline float widen(Bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// f8e4m3fn: 4 exponent bits with bias 7, 3 mantissa bits, no infinity, NaN is 0x7f and 0xff.
// Exact. Subnormals go through an integer: as fp32 subnormals they would stall the multiplier.
inline float widen(F8E4M3 value) {
  const uint32_t magnitude = value.bits & 0x7fu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x80u) << 24;
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
  const uint32_t normal_bits = (magnitude << 20) + (120u << 23);
  uint32_t bits = magnitude < 8 ? std::bit_cast<uint32_t>(small) : normal_bits;
  bits = magnitude == 0x7f ? 0x7fc00000u : bits;
  return std::bit_cast<float>(bits | sign);
}

// Rounds to nearest even; a NaN stays a NaN (rounding alone could carry it into infinity).
inline uint16_t bf16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

template <class T>
T narrow(float value);
template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline Bf16 narrow<Bf16>(float value) {
  return {bf16_bits(value)};
}
// The nearest f8e4m3, ties to even; beyond the largest: the largest. Below the normal ones, adding
// 2^14 rounds to their step.
template <>
inline F8E4M3 narrow<F8E4M3>(float value) {
  const uint32_t sign = std::bit_cast<uint32_t>(value) >> 24 & 0x80u;
  const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffu);
  const float limited = magnitude < 448.0f ? magnitude : 448.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(limited);
  const uint32_t normal = ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - (120u << 3);
  const uint32_t subnormal = std::bit_cast<uint32_t>(limited + 0x1p14f) & 0xfu;
  const uint32_t code = limited < 0x1p-6f ? subnormal : normal;
  return {static_cast<uint8_t>(sign | (magnitude == magnitude ? code : 0x7fu))};
}

// Calls body(T{}) with the C++ type of a f32 or bf16 tensor.
template <class Body>
void with_float_type(DType dtype, const Body& body) {
  if (dtype == DType::kF32) return body(float{});
  if (dtype == DType::kBF16) return body(Bf16{});
  fail(code::kInternal, "expected f32 or bf16, got ", name_of(dtype));
}

// The same, with f8e4m3 too.
template <class Body>
void with_weight_type(DType dtype, const Body& body) {
  if (dtype == DType::kF8E4M3) return body(F8E4M3{});
  with_float_type(dtype, body);
}

// Start of row `i` of a tensor whose first dimension counts rows.
template <class T>
T* row_of(const Tensor& tensor, int64_t i) {
  return tensor.as<T>() + i * tensor.stride(0);
}

}  // namespace loza::cpu
