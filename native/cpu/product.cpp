#include "cpu/product.h"

#include <vector>

#include "core/parallel.h"
#include "cpu/axpy.h"
#include "cpu/gemm.h"
#include "cpu/outer.h"

namespace loza::cpu {
namespace {

LOZA_MULTIVERSION void run_one(const gemm::Task& task) { gemm::run_task(task); }
LOZA_MULTIVERSION void run_one(const gemm::AxpyTask& task) { gemm::run_axpy(task); }
LOZA_MULTIVERSION void run_one(const gemm::OuterTask& task) { gemm::run_outer(task); }

int64_t parts_of(int64_t extent, int64_t part) { return (extent + part - 1) / part; }

// ---- One matrix, or one a head -------------------------------------------------------------------

template <class Task>
void run_dense(const Product& product) {
  const Tensor &x = product.x, &out = product.out, &weight = product.weight;
  const int64_t rows = product.rows(), n = product.n(), k = product.k();
  const int64_t blocks = parts_of(rows, gemm::kRowBlock), panels = parts_of(n, gemm::kPanel);
  const int64_t work = std::min(rows, gemm::kRowBlock) * std::min(n, gemm::kPanel) * k;
  const auto run = [&](int64_t begin, int64_t end) {
    const float* x_rows[gemm::kRowBlock];
    float* out_rows[gemm::kRowBlock];
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * gemm::kRowBlock, head = item / blocks / panels;
      const int64_t column = item / blocks % panels * gemm::kPanel;
      const int64_t count = std::min(gemm::kRowBlock, rows - first);
      const float* x_first = x.as<float>() + head * product.x_head_stride();
      float* out_first = out.as<float>() + head * product.out_head_stride();
      for (int64_t r = 0; r < count; r++) {
        x_rows[r] = x_first + (first + r) * x.stride(0);
        out_rows[r] = out_first + (first + r) * out.stride(0);
      }
      const int64_t matrix = head * product.weight_head_stride() * size_of(weight.dtype);
      run_one(Task{.x = x_rows,
                   .out = out_rows,
                   .rows = count,
                   .n_begin = column,
                   .n_end = std::min(n, column + gemm::kPanel),
                   .k = k,
                   .weight = weight.as<char>() + matrix,
                   .dtype = weight.dtype,
                   .weight_stride = product.weight_stride(),
                   .scale = product.scale.as<float>(),
                   .scale_stride = product.scale_stride(),
                   .accumulate = product.accumulate});
    }
  };
  parallel_for(product.heads() * panels * blocks, gemm::grain_of(work), run);
}

// ---- A matrix an expert --------------------------------------------------------------------------

// Some rows of one expert.
struct RowBlock {
  int64_t expert, first, count;
};

void check_starts(const Tensor& starts, int64_t slots, const char* name) {
  const int32_t* from = starts.as<int32_t>();
  for (int64_t expert = 0; expert + 1 < starts.dim(0); expert++)
    check(from[expert] >= 0 && from[expert] <= from[expert + 1] && from[expert + 1] <= slots, name,
          ": expert ", expert, " has rows ", from[expert], " to ", from[expert + 1], " of ", slots);
}

// The row of x behind a slot.
int64_t source_of(const Tensor& order, int32_t top_k, int64_t slot, const Tensor& x,
                  const char* name) {
  const int64_t source = order ? order.as<int32_t>()[slot] / top_k : slot;
  check(source >= 0 && source < x.dim(0), name, ": slot ", slot, " reads row ", source, " of ", x);
  return source;
}

void list_blocks(const GroupedProduct& product, std::vector<RowBlock>& blocks) {
  const int32_t* starts = product.starts.as<int32_t>();
  blocks.clear();
  for (int64_t expert = 0; expert < product.experts(); expert++)
    for (int64_t first = starts[expert]; first < starts[expert + 1]; first += gemm::kRowBlock)
      blocks.push_back({expert, first, std::min(gemm::kRowBlock, starts[expert + 1] - first)});
}

template <class Task>
void run_grouped(const GroupedProduct& product, const char* name) {
  thread_local std::vector<RowBlock> listed;
  std::vector<RowBlock>& blocks = listed;  // the lambda runs on other threads too
  list_blocks(product, blocks);
  const Tensor &x = product.x, &out = product.out, &weight = product.weight;
  const int64_t n = product.n(), k = product.k(), panels = parts_of(n, gemm::kPanel);
  const int64_t work = std::min(n, gemm::kPanel) * k;
  const auto run = [&](int64_t begin, int64_t end) {
    const float* x_rows[gemm::kRowBlock];
    float* out_rows[gemm::kRowBlock];
    for (int64_t item = begin; item < end; item++) {
      const auto& [expert, first, count] = blocks[item / panels];
      for (int64_t r = 0; r < count; r++) {
        const int64_t source = source_of(product.order, product.top_k, first + r, x, name);
        x_rows[r] = x.as<float>() + source * x.stride(0);
        out_rows[r] = out.as<float>() + (first + r) * out.stride(0);
      }
      const int64_t column = item % panels * gemm::kPanel;
      const float* scale = product.scale.as<float>();
      run_one(Task{.x = x_rows,
                   .out = out_rows,
                   .rows = count,
                   .n_begin = column,
                   .n_end = std::min(n, column + gemm::kPanel),
                   .k = k,
                   .weight = weight.as<char>() + expert * weight.stride(0) * size_of(weight.dtype),
                   .dtype = weight.dtype,
                   .weight_stride = product.weight_stride(),
                   .scale = scale ? scale + expert * product.scale_expert_stride() : nullptr,
                   .scale_stride = product.scale_stride(),
                   .accumulate = product.accumulate});
    }
  };
  parallel_for(static_cast<int64_t>(blocks.size()) * panels, gemm::grain_of(work), run);
}

}  // namespace

void run(const Product& product) {
  if (product.along_n)
    run_dense<gemm::AxpyTask>(product);
  else
    run_dense<gemm::Task>(product);
}

void run(const GroupedProduct& product, const char* name) {
  check_starts(product.starts, product.slots(), name);
  if (product.along_n)
    run_grouped<gemm::AxpyTask>(product, name);
  else
    run_grouped<gemm::Task>(product, name);
}

void run(const OuterProduct& product, const char* name) {
  const Tensor &out = product.out, &y = product.y, &x = product.x;
  const int64_t slots = y.dim(0), n = product.n(), k = product.k();
  if (product.starts) check_starts(product.starts, slots, name);
  const int32_t whole[] = {0, static_cast<int32_t>(slots)};
  const int32_t* starts = product.starts ? product.starts.as<int32_t>() : whole;
  const int32_t* order = product.order.as<int32_t>();
  for (int64_t slot = 0; slot < starts[product.experts()]; slot++)
    source_of(product.order, product.top_k, slot, x, name);
  const int64_t across = parts_of(n, gemm::kOuterPanel), along = parts_of(k, gemm::kOuterPanel);
  const int64_t work = slots * std::min(n, gemm::kOuterPanel) * std::min(k, gemm::kOuterPanel);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t expert = item / along / across, first = starts[expert];
      const int64_t first_n = item / along % across * gemm::kOuterPanel;
      const int64_t first_k = item % along * gemm::kOuterPanel;
      run_one(gemm::OuterTask{.out = out.as<float>() + expert * product.expert_stride(),
                              .y = y.as<float>() + first * y.stride(0),
                              .x = x.as<float>() + (order ? 0 : first * x.stride(0)),
                              .order = order ? order + first : nullptr,
                              .top_k = product.top_k,
                              .out_stride = out.stride(-2),
                              .y_stride = y.stride(0),
                              .x_stride = x.stride(0),
                              .rows = starts[expert + 1] - first,
                              .n_begin = first_n,
                              .n_end = std::min(n, first_n + gemm::kOuterPanel),
                              .k_begin = first_k,
                              .k_end = std::min(k, first_k + gemm::kOuterPanel)});
    }
  };
  // Experts are never equally loaded: their tasks are handed out one by one.
  const int64_t grain = product.starts ? 1 : gemm::grain_of(work);
  parallel_for(product.experts() * across * along, grain, run);
}

}  // namespace loza::cpu
