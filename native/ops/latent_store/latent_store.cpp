#include "ops/latent_store/latent_store.h"

#include "cpu/rms.h"
#include "cpu/rope.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void LatentStoreParams::check(DType act) const {
  cpu::expect_float("latent_store weight", weight, -1);
  expect("latent_store rope_table", rope_table, DType::kF32, -1, -1);
  const int64_t rows = rope_table.dim(0), width = weight.dim(0) + rope_table.dim(1);
  expect("latent_store kv", kv, act, rows, width);
  expect("latent_store slots", slots, DType::kI32, rows);
  cpu::expect_float("latent_store cache", cache, -1, width);
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

template <class Cache, class Weight>
void store_rows(const LatentStoreParams& params) {
  const int64_t latent = params.weight.dim(0), rope = params.rope_table.dim(1);
  for_each_row(params.slots.dim(0), latent + rope, [&](int64_t row) {
    const int32_t slot = params.slots.as<const int32_t>()[row];
    if (slot == -1) return;
    check(slot >= 0 && slot < params.cache.dim(0), "latent_store: slot ", slot,
          " is outside a cache of ", params.cache.dim(0), " slots");
    const auto* kv = row_of<const float>(params.kv, row);
    auto* entry = row_of<Cache>(params.cache, slot);
    rms_norm_row(entry, kv, params.weight.as<const Weight>(), latent, params.eps, params.scale);
    rotate_row(entry + latent, kv + latent, row_of<const float>(params.rope_table, row), rope / 2);
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
  with_float_type(params.cache.dtype, [&]<class Cache>(Cache) {
    with_float_type(params.weight.dtype,
                    [&]<class Weight>(Weight) { store_rows<Cache, Weight>(params); });
  });
}

}  // namespace cpu

}  // namespace loza
