#include "ops/gather_rows_gradient/gather_rows_gradient.h"

#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void GatherRowsGradientParams::check(DType act) const {
  expect("gather_rows gradient: dtable", dtable, DType::kF32, -1, -1);
  expect("gather_rows gradient: ids", ids, DType::kI32, -1);
  expect("gather_rows gradient: dout", dout, dout.dtype == act ? act : DType::kF32, ids.dim(0),
         dtable.dim(1));
}

namespace cpu {

namespace {

// Columns that one thread owns.
constexpr int64_t kColumns = 64;

LOZA_MULTIVERSION void add(float* sum, const float* x, int64_t width) {
  for (int64_t i = 0; i < width; i++) sum[i] += x[i];
}

}  // namespace

void compute(const GatherRowsGradientParams& params) {
  const auto& [dtable, dout, ids] = params;
  const int64_t rows = ids.dim(0), width = dtable.dim(1);
  for (int64_t row = 0; row < rows; row++) {
    const int32_t id = ids.as<int32_t>()[row];
    if (id < 0 || id >= dtable.dim(0))
      fail(code::kInvalidArg, "row id ", id, " is outside a table of ", dtable.dim(0), " rows");
  }
  for_each_row((width + kColumns - 1) / kColumns, rows * kColumns, [&](int64_t block) {
    const int64_t first = block * kColumns, columns = std::min(kColumns, width - first);
    for (int64_t row = 0; row < rows; row++)
      add(row_of<float>(params.dtable, params.ids.as<int32_t>()[row]) + first,
          row_of<const float>(params.dout, row) + first, columns);
  });
}

}  // namespace cpu

}  // namespace loza
