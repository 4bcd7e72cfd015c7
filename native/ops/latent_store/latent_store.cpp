#include "ops/latent_store/latent_store.h"

#include "cpu/rms.h"
#include "cpu/rope.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"
#include "ops/latent_cache.h"

namespace loza {

void LatentStoreParams::check(DType act) const {
  cpu::expect_float("latent_store weight", weight, -1);
  expect("latent_store rope_table", rope_table, DType::kF32, -1, -1);
  const int64_t rows = rope_table.dim(0), width = weight.dim(0) + rope_table.dim(1);
  expect("latent_store kv", kv, act, rows, width);
  expect("latent_store slots", slots, DType::kI32, rows);
  expect_latent_cache("latent_store cache", cache, weight.dim(0), rope_table.dim(1));
  loza::check(static_cast<bool>(query) == static_cast<bool>(query_weight),
              "latent_store: query and query_weight come together");
  if (query) {
    expect("latent_store query_weight", query_weight, weight.dtype, -1);
    expect("latent_store query", query, act, rows, query_weight.dim(0));
  }
  loza::check(rope_table.dim(1) % 2 == 0, "latent_store rotates pairs, but the rope width is ",
              rope_table.dim(1));
}

namespace cpu {

namespace {

// body(slot, kv's row, table's row) for every row that is stored.
template <class Body>
void for_each_slot(const LatentStoreParams& params, const Body& body) {
  for_each_row(params.slots.dim(0), params.kv.dim(1), [&](int64_t row) {
    const int32_t slot = params.slots.as<const int32_t>()[row];
    if (slot == -1) return;
    check(slot >= 0 && slot < params.cache.dim(0), "latent_store: slot ", slot,
          " is outside a cache of ", params.cache.dim(0), " slots");
    body(slot, row_of<const float>(params.kv, row), row_of<const float>(params.rope_table, row));
  });
}

template <class Cache, class Weight>
void store_rows(const LatentStoreParams& params) {
  const int64_t latent = params.weight.dim(0), rope = params.rope_table.dim(1);
  for_each_slot(params, [&](int32_t slot, const float* kv, const float* angles) {
    auto* entry = row_of<Cache>(params.cache, slot);
    rms_norm_row(entry, kv, params.weight.as<const Weight>(), latent, params.eps, params.scale);
    rotate_row(entry + latent, kv + latent, angles, rope / 2);
  });
}

// Magnitudes are compared by their bits, as which NaN is the largest.
LOZA_MULTIVERSION float largest_of(const float* x, int64_t width) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < width; i++) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = largest > bits ? largest : bits;
  }
  return std::bit_cast<float>(largest);
}

template <class T>
LOZA_MULTIVERSION void narrow_row(T* out, const float* x, int64_t width, float factor) {
  for (int64_t i = 0; i < width; i++) out[i] = narrow<T>(x[i] * factor);
}

struct RowTag;

template <class Weight>
void quantise_rows(const LatentStoreParams& params) {
  const int64_t latent = params.weight.dim(0), rope = params.rope_table.dim(1);
  const LatentCache cache = latent_cache(params.cache, latent, rope);
  for_each_slot(params, [&](int32_t slot, const float* kv, const float* angles) {
    float* row = simd::scratch<RowTag>(latent + rope);
    rms_norm_row(row, kv, params.weight.as<const Weight>(), latent, params.eps, params.scale);
    rotate_row(row + latent, kv + latent, angles, rope / 2);
    const float scale = latent_scale(largest_of(row, latent));
    narrow_row(cache.codes<F8E4M3>(slot), row, latent, 1 / scale);
    narrow_row(cache.ropes<Bf16>(slot), row + latent, rope, 1 / scale);
    *cache.scale(slot) = scale;
  });
}

void normalise_queries(const LatentStoreParams& params) {
  compute(RmsNormParams{.out = params.query,
                        .x = params.query,
                        .weight = params.query_weight,
                        .eps = params.eps,
                        .scale = params.query_scale});
}

}  // namespace

void compute(const LatentStoreParams& params) {
  if (params.query) normalise_queries(params);
  with_float_type(params.weight.dtype, [&]<class Weight>(Weight) {
    if (is_latent_cache(params.cache)) return quantise_rows<Weight>(params);
    with_float_type(params.cache.dtype,
                    [&]<class Cache>(Cache) { store_rows<Cache, Weight>(params); });
  });
}

}  // namespace cpu

}  // namespace loza
