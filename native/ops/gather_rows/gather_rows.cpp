#include "ops/gather_rows/gather_rows.h"

#include "cpu/rows.h"
#include "ops/cpu_ops.h"
#include "ops/latent_cache.h"

namespace loza {

void GatherRowsParams::check(DType act) const {
  expect("gather_rows ids", ids, DType::kI32, -1);
  expect("gather_rows out", out, out.dtype == act ? act : DType::kF32, ids.dim(0), -1);
  if (table && is_latent_cache(table) && table.rank == 2) {
    loza::check(rope() >= 0 && latent() >= 0, "gather_rows: ", table, " has no rows of ",
                out.dim(1), " values");
    return expect_latent_cache("gather_rows table", table, latent(), rope());
  }
  cpu::expect_float("gather_rows table", table, -1, out.dim(1));
}

namespace cpu {

namespace {

// body(out's row, id) for every id.
template <class Body>
void for_each_id(const GatherRowsParams& params, const Body& body) {
  const auto& [out, table, ids] = params;
  for_each_row(ids.dim(0), out.dim(1), [&](int64_t row) {
    const int32_t id = ids.as<int32_t>()[row];
    if (id < 0 || id >= table.dim(0))
      fail(code::kInvalidArg, "row id ", id, " is outside a table of ", table.dim(0), " rows");
    body(row_of<float>(out, row), id);
  });
}

template <class T>
LOZA_MULTIVERSION void scale_row(float* out, const T* in, int64_t width, float scale) {
  for (int64_t i = 0; i < width; i++) out[i] = widen(in[i]) * scale;
}

}  // namespace

void compute(const GatherRowsParams& params) {
  const Tensor& table = params.table;
  if (is_latent_cache(table)) {
    const LatentCache cache = latent_cache(table, params.latent(), params.rope());
    return for_each_id(params, [&](float* out, int32_t slot) {
      scale_row(out, cache.codes<const F8E4M3>(slot), cache.latent, *cache.scale(slot));
      scale_row(out + cache.latent, cache.ropes<const Bf16>(slot), cache.rope, *cache.scale(slot));
    });
  }
  with_float_type(table.dtype, [&]<class T>(T) {
    for_each_id(params, [&](float* out, int32_t id) {
      widen_row(out, row_of<T>(table, id), params.out.dim(1));
    });
  });
}

}  // namespace cpu

}  // namespace loza
