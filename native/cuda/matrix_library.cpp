#include "cuda/matrix_library.h"

#include <dlfcn.h>
#include <library_types.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "cuda/cuda_stream.h"

namespace loza {
namespace {

// The few declarations of cublasLt.h that are used here, unchanged since CUDA 11.
namespace lt {

using Handle = struct HandleOpaque*;
using MatmulDesc = struct MatmulDescOpaque*;
using MatrixLayout = struct MatrixLayoutOpaque*;
using Preference = struct PreferenceOpaque*;
using Status = int;

constexpr Status kSuccess = 0;                          // CUBLAS_STATUS_SUCCESS
constexpr int kComputeF32 = 68;                         // CUBLAS_COMPUTE_32F
constexpr int32_t kNotTransposed = 0, kTransposed = 1;  // CUBLAS_OP_N, CUBLAS_OP_T
constexpr int kDescTransposeA = 3;                      // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kDescTransposeB = 4;                      // CUBLASLT_MATMUL_DESC_TRANSB
constexpr int kLayoutBatchCount = 5;   // CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t
constexpr int kLayoutBatchOffset = 6;  // CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, int64_t
constexpr int kPreferWorkspace = 1;    // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t
constexpr int kPreferReduction = 3;    // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t
constexpr int kPreferAlignmentA = 5;   // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t;
constexpr int kOperands = 4;           // then B, C, D
constexpr uint32_t kReduceInComputeType = 2;  // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE

struct Algorithm {
  uint64_t data[8];
};

struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};

struct Functions {
  Status (*create)(Handle*);
  Status (*destroy)(Handle);
  Status (*desc_create)(MatmulDesc*, int compute_type, cudaDataType_t scale_type);
  Status (*desc_destroy)(MatmulDesc);
  Status (*desc_set)(MatmulDesc, int attribute, const void*, size_t);
  Status (*layout_create)(MatrixLayout*, cudaDataType_t, uint64_t rows, uint64_t columns,
                          int64_t stride);
  Status (*layout_destroy)(MatrixLayout);
  Status (*layout_set)(MatrixLayout, int attribute, const void*, size_t);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, int attribute, const void*, size_t);
  Status (*heuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c,
                      MatrixLayout d, Preference, int wanted, Heuristic*, int* found);
  Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout,
                   const void* b, MatrixLayout, const void* beta, const void* c, MatrixLayout,
                   void* d, MatrixLayout, const Algorithm*, void* workspace, size_t, cudaStream_t);
};

}  // namespace lt

constexpr size_t kWorkspace = size_t{32} << 20;
constexpr size_t kScratchAlignment = 256;
constexpr int64_t kVector = 8;       // 16 bytes of bf16: less aligned operands are left to others
constexpr size_t kMostPlans = 4096;  // prefill chunks come in any length

size_t round_up(size_t bytes) {
  return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

void* open_library() {
  constexpr std::array kNames{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  constexpr std::array kFolders{"", "/usr/local/cuda/lib64/"};
  for (const char* folder : kFolders)
    for (const char* name : kNames)
      if (void* library = dlopen((std::string(folder) + name).c_str(), RTLD_NOW | RTLD_LOCAL))
        return library;
  return nullptr;
}

template <class Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* library, lt::Functions& f) {
  return find(library, "cublasLtCreate", f.create) && find(library, "cublasLtDestroy", f.destroy) &&
         find(library, "cublasLtMatmulDescCreate", f.desc_create) &&
         find(library, "cublasLtMatmulDescDestroy", f.desc_destroy) &&
         find(library, "cublasLtMatmulDescSetAttribute", f.desc_set) &&
         find(library, "cublasLtMatrixLayoutCreate", f.layout_create) &&
         find(library, "cublasLtMatrixLayoutDestroy", f.layout_destroy) &&
         find(library, "cublasLtMatrixLayoutSetAttribute", f.layout_set) &&
         find(library, "cublasLtMatmulPreferenceCreate", f.preference_create) &&
         find(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", f.heuristic) &&
         find(library, "cublasLtMatmul", f.matmul);
}

bool disabled() {
  const char* value = std::getenv("LOZA_CUBLAS");
  return value != nullptr && std::strcmp(value, "off") == 0;
}

// The largest power of two, up to 256, that divides the address.
uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 256u;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// The library is column-major: it computes out^T[n, rows] = W x^T, so A is the weight, B is x.
struct Plan {
  lt::MatmulDesc desc = nullptr;
  lt::MatrixLayout weight = nullptr, x = nullptr, out = nullptr;
  lt::Algorithm algorithm{};
  bool usable = false;
};

using Key = std::array<int64_t, 17>;

Key key_of(const MatrixLibrary::Product& p) {
  return {p.rows,
          p.n,
          p.k,
          p.out_stride,
          p.x_stride,
          p.weight_stride,
          static_cast<int64_t>(p.out_type),
          p.weight_is_transposed,
          p.x_is_transposed,
          p.accumulate,
          p.batch,
          p.out_batch_stride,
          p.x_batch_stride,
          p.weight_batch_stride,
          alignment_of(p.weight),
          alignment_of(p.x),
          alignment_of(p.out)};
}

bool vectorised(const void* address, int64_t stride, int64_t batch_stride) {
  return alignment_of(address) >= 16 && stride % kVector == 0 && batch_stride % kVector == 0;
}

// Rows shorter than their stride's promise would be refused, or worse.
bool supported(const MatrixLibrary::Product& p) {
  const int64_t weight_row = p.weight_is_transposed ? p.n : p.k;
  const int64_t x_row = p.x_is_transposed ? p.rows : p.k;
  return p.rows > 0 && p.n > 0 && p.k > 0 && p.x_stride >= x_row && p.out_stride >= p.n &&
         p.weight_stride >= weight_row && vectorised(p.x, p.x_stride, p.x_batch_stride) &&
         vectorised(p.weight, p.weight_stride, p.weight_batch_stride) &&
         vectorised(p.out, p.out_stride, p.out_batch_stride);
}

}  // namespace

struct MatrixLibrary::State {
  lt::Functions functions{};
  lt::Handle handle = nullptr;
  std::map<Key, Plan> plans;

  ~State() {
    forget_plans();
    if (handle) functions.destroy(handle);
    // The library itself stays loaded: unloading code that a graph may still name gains nothing.
  }

  void forget_plans() {
    for (auto& [key, plan] : plans) release(plan);
    plans.clear();
  }

  void release(const Plan& plan) const {
    if (plan.desc) functions.desc_destroy(plan.desc);
    for (lt::MatrixLayout layout : {plan.weight, plan.x, plan.out})
      if (layout) functions.layout_destroy(layout);
  }

  bool make_layout(lt::MatrixLayout& layout, cudaDataType_t type, int64_t rows, int64_t columns,
                   int64_t stride, int64_t batch, int64_t batch_stride) const {
    const auto count = static_cast<int32_t>(batch);
    const auto& f = functions;
    return f.layout_create(&layout, type, static_cast<uint64_t>(rows),
                           static_cast<uint64_t>(columns), stride) == lt::kSuccess &&
           f.layout_set(layout, lt::kLayoutBatchCount, &count, sizeof(count)) == lt::kSuccess &&
           f.layout_set(layout, lt::kLayoutBatchOffset, &batch_stride, sizeof(batch_stride)) ==
               lt::kSuccess;
  }

  bool describe(Plan& plan, const Product& p) const {
    const int32_t a = p.weight_is_transposed ? lt::kNotTransposed : lt::kTransposed;
    const int32_t b = p.x_is_transposed ? lt::kTransposed : lt::kNotTransposed;
    const auto& f = functions;
    const cudaDataType_t out_type = p.out_type == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
    const int64_t a_rows = p.weight_is_transposed ? p.n : p.k;
    const int64_t a_columns = p.weight_is_transposed ? p.k : p.n;
    const int64_t b_rows = p.x_is_transposed ? p.rows : p.k;
    const int64_t b_columns = p.x_is_transposed ? p.k : p.rows;
    return f.desc_create(&plan.desc, lt::kComputeF32, CUDA_R_32F) == lt::kSuccess &&
           f.desc_set(plan.desc, lt::kDescTransposeA, &a, sizeof(a)) == lt::kSuccess &&
           f.desc_set(plan.desc, lt::kDescTransposeB, &b, sizeof(b)) == lt::kSuccess &&
           make_layout(plan.weight, CUDA_R_16BF, a_rows, a_columns, p.weight_stride, p.batch,
                       p.weight_batch_stride) &&
           make_layout(plan.x, CUDA_R_16BF, b_rows, b_columns, p.x_stride, p.batch,
                       p.x_batch_stride) &&
           make_layout(plan.out, out_type, p.n, p.rows, p.out_stride, p.batch, p.out_batch_stride);
  }

  bool set_preferences(lt::Preference preference, const Product& p) const {
    const uint64_t workspace = kWorkspace;
    // Partial sums are only ever added in fp32 and in a fixed order.
    const uint32_t reduction = lt::kReduceInComputeType;
    const uint32_t alignments[lt::kOperands] = {alignment_of(p.weight), alignment_of(p.x),
                                                alignment_of(p.out), alignment_of(p.out)};
    const auto set = functions.preference_set;
    bool done =
        set(preference, lt::kPreferWorkspace, &workspace, sizeof(workspace)) == lt::kSuccess &&
        set(preference, lt::kPreferReduction, &reduction, sizeof(reduction)) == lt::kSuccess;
    for (int i = 0; i < lt::kOperands; i++)
      done = done && set(preference, lt::kPreferAlignmentA + i, &alignments[i],
                         sizeof(alignments[i])) == lt::kSuccess;
    return done;
  }

  bool choose(Plan& plan, const Product& p) const {
    lt::Preference preference = nullptr;
    if (functions.preference_create(&preference) != lt::kSuccess) return false;
    lt::Heuristic best{};
    int found = 0;
    const bool chosen =
        set_preferences(preference, p) &&
        functions.heuristic(handle, plan.desc, plan.weight, plan.x, plan.out, plan.out, preference,
                            1, &best, &found) == lt::kSuccess &&
        found > 0 && best.state == lt::kSuccess && best.workspace <= kWorkspace;
    functions.preference_destroy(preference);
    plan.algorithm = best.algorithm;
    return chosen;
  }

  Plan& plan_of(const Product& product) {
    const Key key = key_of(product);
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
    if (plans.size() >= kMostPlans) forget_plans();
    Plan& plan = plans[key];
    plan.usable = describe(plan, product) && choose(plan, product);
    return plan;
  }
};

size_t MatrixLibrary::scratch_bytes(size_t in_use) { return round_up(in_use) + kWorkspace; }

MatrixLibrary::MatrixLibrary(CudaStream& stream) : stream_(stream) {
  if (disabled()) return;
  void* library = open_library();
  if (library == nullptr) return;
  auto state = std::make_unique<State>();
  if (find_all(library, state->functions) &&
      state->functions.create(&state->handle) == lt::kSuccess)
    state_ = std::move(state);
}

MatrixLibrary::~MatrixLibrary() = default;

bool MatrixLibrary::matmul(const Product& p) {
  if (!available() || !supported(p)) return false;
  Plan& plan = state_->plan_of(p);
  if (!plan.usable) return false;
  const float alpha = 1, beta = p.accumulate ? 1 : 0;
  std::byte* workspace =
      stream_.scratch(scratch_bytes(p.scratch_in_use)) + round_up(p.scratch_in_use);
  plan.usable =
      state_->functions.matmul(state_->handle, plan.desc, &alpha, p.weight, plan.weight, p.x,
                               plan.x, &beta, p.out, plan.out, p.out, plan.out, &plan.algorithm,
                               workspace, kWorkspace, stream_.handle()) == lt::kSuccess;
  return plan.usable;
}

}  // namespace loza
