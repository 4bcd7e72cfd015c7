// The products of ops/product.h on the CPU, in parallel: which rows and columns are one task depends
// on the shapes alone, and by gemm.h's promise no sum does.
#pragma once

#include "ops/product.h"

namespace loza::cpu {

void run(const Product& product);

// Checks what is not known before it runs: that `starts` and `order` name rows that exist. `name`: of
// the operation, for errors.
void run(const GroupedProduct& product, const char* name);
void run(const OuterProduct& product, const char* name);

}  // namespace loza::cpu
