// What the CPU operations share: an 8-wide float vector, loads from every weight type, exp, sums.
//
// Vectors are GCC vector extensions, so one source serves every instruction set. An entry function
// marked LOZA_MULTIVERSION is compiled once for each x86-64 level and picked when the program
// starts; every LOZA_INLINE helper it calls is compiled anew inside each clone. A lambda inside
// such a function is not, so these files use none there.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

// Thread sanitizer instruments the resolvers, which run before it is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define LOZA_MULTIVERSION \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LOZA_MULTIVERSION
#endif

#define LOZA_INLINE inline __attribute__((always_inline))
#define LOZA_UNROLL _Pragma("GCC unroll 16")

namespace loza::simd {

inline constexpr int kWidth = 8;

using f32x4 = float __attribute__((vector_size(16)));
using f32x8 = float __attribute__((vector_size(32)));
using i32x8 = int32_t __attribute__((vector_size(32)));
using u32x8 = uint32_t __attribute__((vector_size(32)));
using u16x8 = uint16_t __attribute__((vector_size(16)));
using i16x8 = int16_t __attribute__((vector_size(16)));
using i8x16 = int8_t __attribute__((vector_size(16)));
using i64x2 = int64_t __attribute__((vector_size(16)));

// Storage types that a pointer to weights can have besides float.
struct Bf16 {
  uint16_t bits;
};
struct F8E4M3 {
  uint8_t bits;
};

// Whether 32 vector registers are there, which decides how large a register tile may be.
inline bool wide_registers() {
#if defined(__x86_64__)
  static const bool wide = __builtin_cpu_supports("avx512vl");
  return wide;
#else
  return false;
#endif
}

LOZA_INLINE f32x8 splat(float value) { return value - f32x8{}; }

LOZA_INLINE f32x8 load(const float* from) {
  f32x8 value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

LOZA_INLINE f32x8 load(const Bf16* from) {
  u16x8 bits;
  std::memcpy(&bits, from, sizeof(bits));
  return (f32x8)(__builtin_convertvector(bits, u32x8) << 16);
}

// Each byte goes to the upper half of an int16, from there to int32 and to where float keeps sign,
// exponent and mantissa: that is the value times 2^-120, subnormals included. Only NaN (all seven
// bits set) needs care; all bits of a float set are one.
LOZA_INLINE f32x8 load(const F8E4M3* from) {
  int64_t bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  const i8x16 low = (i8x16)i64x2{bytes, 0};
  const i16x8 halves = (i16x8)__builtin_shufflevector(i8x16{}, low, 0, 16, 1, 17, 2, 18, 3, 19, 4,
                                                      20, 5, 21, 6, 22, 7, 23);
  const i32x8 moved = __builtin_convertvector(halves, i32x8) << 12;
  const f32x8 value = (f32x8)(moved & static_cast<int32_t>(0x87f00000)) * 0x1p120f;
  return (f32x8)((i32x8)value | ((moved & 0x07f00000) == 0x07f00000));
}

// Out of line, so that the rare tails do not swell every register tile.
template <class T>
__attribute__((noinline)) void widen_first(float* to, const T* from, int64_t count) {
  T padded[kWidth] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
  const f32x8 value = load(padded);
  std::memcpy(to, &value, sizeof(value));
}

// The first `count` < 8 elements, zeros after them; reads no further.
template <class T>
LOZA_INLINE f32x8 load_first(const T* from, int64_t count) {
  float widened[kWidth];
  widen_first(widened, from, count);
  return load(widened);
}

LOZA_INLINE void store(float* to, f32x8 value) { std::memcpy(to, &value, sizeof(value)); }
LOZA_INLINE void store(float* to, f32x4 value) { std::memcpy(to, &value, sizeof(value)); }

LOZA_INLINE void store_first(float* to, f32x8 value, int64_t count) {
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
}

LOZA_INLINE f32x8 max(f32x8 a, f32x8 b) { return a > b ? a : b; }

LOZA_INLINE f32x4 low_half(f32x8 a) { return __builtin_shufflevector(a, a, 0, 1, 2, 3); }
LOZA_INLINE f32x4 high_half(f32x8 a) { return __builtin_shufflevector(a, a, 4, 5, 6, 7); }

// Sum over the lanes in the one order of this project: halves, then pairs two apart, then the two.
LOZA_INLINE float sum(f32x8 a) {
  const f32x4 half = low_half(a) + high_half(a);
  return (half[0] + half[2]) + (half[1] + half[3]);
}

// Four such sums at once, each bitwise what `sum` gives.
LOZA_INLINE f32x4 sum4(f32x8 a, f32x8 b, f32x8 c, f32x8 d) {
  const f32x4 ha = low_half(a) + high_half(a), hb = low_half(b) + high_half(b);
  const f32x4 hc = low_half(c) + high_half(c), hd = low_half(d) + high_half(d);
  const f32x4 ab =
      __builtin_shufflevector(ha, hb, 0, 4, 1, 5) + __builtin_shufflevector(ha, hb, 2, 6, 3, 7);
  const f32x4 cd =
      __builtin_shufflevector(hc, hd, 0, 4, 1, 5) + __builtin_shufflevector(hc, hd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

LOZA_INLINE float max_lane(f32x8 a) {
  float best = a[0];
  LOZA_UNROLL
  for (int i = 1; i < kWidth; i++) best = a[i] > best ? a[i] : best;
  return best;
}

// e^x within 2e-7; zero where e^x is no normal number (so -inf gives 0), inf above, NaN for NaN.
LOZA_INLINE f32x8 exp(f32x8 x) {
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer in the low mantissa bits
  const f32x8 shifted = x * 0x1.715476p0f + kRound;
  const f32x8 n = shifted - kRound;
  f32x8 r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  f32x8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r;
  // 2^n in two factors, as n = 128 has no float; the low bits of `shifted` hold n.
  const i32x8 whole = (i32x8)shifted - 0x4b400000;
  const i32x8 half = whole >> 1;
  const f32x8 scale_a = (f32x8)((half + 127) << 23), scale_b = (f32x8)((whole - half + 127) << 23);
  const f32x8 value = (p + 1.0f) * scale_a * scale_b;
  const f32x8 capped = x > 88.722835f ? splat(std::numeric_limits<float>::infinity()) : value;
  return x < -87.336540f ? f32x8{} : capped;
}

// A thread's own buffer of at least `count` floats, one a Tag, aligned to cache lines. What it
// holds from earlier calls is garbage.
template <class Tag>
float* scratch(int64_t count) {
  struct Free {
    void operator()(float* floats) const { ::operator delete (floats, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local int64_t capacity = 0;
  if (count > capacity) {
    buffer.reset();
    capacity = 0;
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    buffer.reset(static_cast<float*>(::operator new (bytes, std::align_val_t{64})));
    capacity = count;
  }
  return buffer.get();
}

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace loza::simd
