#include "ops/gather_rows/gather_rows.h"

#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void GatherRowsParams::check(DType act) const {
  cpu::expect_float("gather_rows table", table, -1, -1);
  expect("gather_rows ids", ids, DType::kI32, -1);
  expect("gather_rows out", out, out.dtype == act ? act : DType::kF32, ids.dim(0), table.dim(1));
}

namespace cpu {

void compute(const GatherRowsParams& params) {
  const auto& [out, table, ids] = params;
  const int64_t width = table.dim(1);
  with_float_type(table.dtype, [&]<class T>(T) {
    for_each_row(ids.dim(0), width, [&](int64_t row) {
      const int32_t id = ids.as<int32_t>()[row];
      if (id < 0 || id >= table.dim(0))
        fail(code::kInvalidArg, "row id ", id, " is outside a table of ", table.dim(0), " rows");
      widen_row(row_of<float>(out, row), row_of<T>(table, id), width);
    });
  });
}

}  // namespace cpu

}  // namespace loza
