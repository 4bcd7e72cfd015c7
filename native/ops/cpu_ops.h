// The CPU backend: each operation is a closure on the stream's worker thread. `compute` of an
// operation is defined in the operation's folder; it may use parallel_for.
#pragma once

#include "core/cpu_stream.h"
#include "ops/ops.h"

namespace loza {

namespace cpu {
#define LOZA_DECLARE(Op) void compute(const Op##Params& params);
LOZA_FOR_EACH_OP(LOZA_DECLARE)
#undef LOZA_DECLARE
}  // namespace cpu

class CpuOps final : public Ops {
 public:
  explicit CpuOps(CpuStream& stream) : stream_(stream) {}
  DType activation() const override { return DType::kF32; }
#define LOZA_DEFINE(Op)                                  \
  void run(const Op##Params& params) override {          \
    stream_.enqueue([params] { cpu::compute(params); }); \
  }
  LOZA_FOR_EACH_OP(LOZA_DEFINE)
#undef LOZA_DEFINE

 private:
  CpuStream& stream_;
};

}  // namespace loza
