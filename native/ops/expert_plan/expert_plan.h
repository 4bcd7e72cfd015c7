#pragma once

#include "core/tensor.h"

namespace loza {

// Sorts the routed slots by expert, stably, without leaving the device. Slot s = row * top_k + i.
//   order[i]  = the slot at sorted place i          starts[e] = first sorted place of expert e
//   place[s]  = the sorted place of slot s, or -1 when its expert is a zero expert (id >= experts)
struct ExpertPlanParams {
  Tensor order;   // i32 [rows * top_k]; from starts[experts] on undefined
  Tensor place;   // i32 [rows * top_k]
  Tensor starts;  // i32 [experts + 1]
  Tensor ids;     // i32 [rows, top_k], from route

  void check(DType act) const;
};

}  // namespace loza
