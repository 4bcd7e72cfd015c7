#include "cuda/cuda_stream.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/cuda_device.h"
#include "cuda/cuda_graph.h"
#include "cuda/cuda_ops.h"
#include "cuda/matrix_library.h"
#include "cuda/staging.h"
#include "cuda/waiter.h"

namespace loza {

// Belongs to the thread that enqueues; only the waiter, the pool and what they share are for two.
struct CudaStream::State {
  State(CudaStream& stream, CudaDevice& device, DType activation)
      : device(device), ops(stream, activation) {
    cuda::check(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, cuda::kDevice),
        "cudaDeviceGetAttribute");
    cuda::check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "cudaStreamCreate");
    waiter.emplace();
  }

  // At every call that enqueues: refuses once the stream is closed or CUDA is lost.
  void enter() {
    enter_beside_uploads();
    if (uploader != nullptr) uploader->flush();
  }
  void enter_beside_uploads() const {
    if (closed) fail(code::kClosed, "the stream is closed");
    cuda::make_current();
  }

  // Calls the waiter once the work enqueued so far is done.
  void after(Completion completion) {
    waiter->after(handle, {.arrivals = std::exchange(arrivals, {}),
                           .keep = std::exchange(keep, {}),
                           .completion = std::move(completion)});
  }

  void close() noexcept;

  CudaDevice& device;  // not after close
  CudaOps ops;
  int multiprocessors = 0;
  cudaStream_t handle = nullptr;
  bool recording = false;
  bool closed = false;

  BufferPtr scratch;
  std::vector<BufferPtr> outgrown;
  std::unique_ptr<MatrixLibrary> matrices;

  std::unique_ptr<cuda::WriteRing> ring;
  std::unique_ptr<cuda::Uploader> uploader;
  std::shared_ptr<cuda::PinnedPool> pool = std::make_shared<cuda::PinnedPool>();

  // For the waiter's next item.
  std::vector<cuda::Waiter::Arrival> arrivals;
  std::vector<std::shared_ptr<void>> keep;

  std::optional<cuda::Waiter> waiter;
};

void CudaStream::State::close() noexcept {
  if (std::exchange(closed, true)) return;
  cuda::make_current_quietly();
  if (uploader != nullptr) uploader->stop();
  if (std::exchange(recording, false)) {
    cudaGraph_t graph = nullptr;
    if (cudaStreamEndCapture(handle, &graph) == cudaSuccess && graph != nullptr)
      cudaGraphDestroy(graph);
  }
  waiter->stop();
  cudaStreamSynchronize(handle);
  waiter.reset();
  arrivals.clear();
  keep.clear();
  matrices.reset();
  scratch.reset();
  outgrown.clear();
  ring.reset();
  uploader.reset();
  pool.reset();
  cudaStreamDestroy(handle);
  handle = nullptr;
  cudaGetLastError();  // errors of a lost context: nobody is left to tell
}

CudaStream::CudaStream(CudaDevice& device, DType activation) {
  cuda::make_current();
  state_ = std::make_unique<State>(*this, device, activation);
}

CudaStream::~CudaStream() { close(); }

cudaStream_t CudaStream::handle() const { return state_->handle; }

int CudaStream::multiprocessors() const { return state_->multiprocessors; }

std::byte* CudaStream::scratch(size_t bytes) {
  State& s = *state_;
  if (s.scratch != nullptr && s.scratch->bytes() >= bytes) return s.scratch->data();
  // Doubles while it is small, so that what was outgrown stays less than what is in use.
  constexpr size_t kStep = size_t{1} << 20;
  constexpr size_t kMaxDoubled = size_t{64} << 20;
  size_t wanted = (std::max<size_t>(bytes, 1) + kStep - 1) / kStep * kStep;
  if (s.scratch != nullptr && s.scratch->bytes() <= kMaxDoubled)
    wanted = std::max(wanted, 2 * s.scratch->bytes());
  BufferPtr larger = s.device.allocate(wanted, Purpose::kWorkspace);
  if (s.scratch != nullptr) s.outgrown.push_back(std::move(s.scratch));
  s.scratch = std::move(larger);
  return s.scratch->data();
}

MatrixLibrary& CudaStream::matrix_library() {
  if (state_->matrices == nullptr) state_->matrices = std::make_unique<MatrixLibrary>(*this);
  return *state_->matrices;
}

// Asked for before every operation.
Ops& CudaStream::ops() {
  state_->enter();
  return state_->ops;
}

void CudaStream::write(const Tensor& to, const void* from, size_t bytes) {
  State& s = *state_;
  s.enter();
  check(to.contiguous() && static_cast<size_t>(to.bytes()) == bytes, "write: ", bytes,
        " bytes do not fill ", to);
  check(!s.recording, "write: not while a graph is recorded; write before it is launched");
  if (bytes == 0) return;
  if (bytes <= cuda::WriteRing::kMaxBytes) {
    if (s.ring == nullptr) s.ring = std::make_unique<cuda::WriteRing>();
    s.ring->copy(to.data, from, bytes, s.handle);
    return;
  }
  std::shared_ptr<std::byte> staged = s.pool->take(bytes);
  std::memcpy(staged.get(), from, bytes);
  cuda::check(cudaMemcpyAsync(to.data, staged.get(), bytes, cudaMemcpyHostToDevice, s.handle),
              "write");
  s.waiter->after(s.handle, {.arrivals = {}, .keep = {std::move(staged)}, .completion = nullptr});
}

void CudaStream::upload(const Tensor& to, const Tensor& from,
                        const std::shared_ptr<const MappedFile>& file) {
  State& s = *state_;
  s.enter_beside_uploads();
  check(to.contiguous() && from.contiguous() && to.bytes() == from.bytes(), "upload: ", from,
        " does not fill ", to);
  check(!s.recording, "upload: not while a graph is recorded");
  const auto bytes = static_cast<size_t>(to.bytes());
  if (bytes == 0) return;
  if (s.uploader == nullptr) s.uploader = std::make_unique<cuda::Uploader>(s.handle);
  const auto offset = static_cast<size_t>(from.as<std::byte>() - file->data());
  s.uploader->copy(to.as<std::byte>(), file, offset, bytes);
}

void CudaStream::read(const Tensor& from, void* to) {
  State& s = *state_;
  s.enter();
  check(from.contiguous(), "read: ", from, " is not contiguous");
  check(!s.recording, "read: not while a graph is recorded");
  const auto bytes = static_cast<size_t>(from.bytes());
  if (bytes == 0) return;
  std::shared_ptr<std::byte> staged = s.pool->take(bytes);
  cuda::check(cudaMemcpyAsync(staged.get(), from.data, bytes, cudaMemcpyDeviceToHost, s.handle),
              "read");
  s.arrivals.push_back({.from = std::move(staged), .to = to, .bytes = bytes});
}

void CudaStream::on_complete(Completion completion) {
  State& s = *state_;
  if (s.closed) fail(code::kClosed, "the stream is closed");
  check(!s.recording, "on_complete: not while a graph is recorded");
  cuda::make_current_quietly();
  if (s.uploader != nullptr) s.uploader->flush();
  s.after(std::move(completion));
}

void CudaStream::keep_until_here(BufferPtr buffer) {
  State& s = *state_;
  if (s.closed) return;  // nothing runs any more
  // An event that is recorded now would become a part of the graph: the next item takes it along.
  if (s.recording) {
    s.keep.push_back(std::move(buffer));
    return;
  }
  cuda::make_current_quietly();
  if (s.uploader != nullptr) s.uploader->wait();
  s.waiter->after(s.handle, {.arrivals = {}, .keep = {std::move(buffer)}, .completion = nullptr});
}

void CudaStream::begin_graph() {
  State& s = *state_;
  s.enter();
  check(!s.recording, "begin_graph: a graph is being recorded already");
  // Relaxed: scratch memory may grow while a graph is recorded.
  cuda::check(cudaStreamBeginCapture(s.handle, cudaStreamCaptureModeRelaxed),
              "cudaStreamBeginCapture");
  s.recording = true;
}

std::shared_ptr<Graph> CudaStream::end_graph() {
  State& s = *state_;
  s.enter();
  check(s.recording, "end_graph: no graph is being recorded");
  s.recording = false;
  cudaGraph_t graph = nullptr;
  cuda::check(cudaStreamEndCapture(s.handle, &graph), "cudaStreamEndCapture");
  check(graph != nullptr, "end_graph: the recording was broken off");
  return std::make_shared<CudaGraph>(graph);
}

void CudaStream::launch(const std::shared_ptr<Graph>& graph) {
  State& s = *state_;
  s.enter();
  const auto recorded = std::dynamic_pointer_cast<CudaGraph>(graph);
  check(recorded != nullptr, "launch: this graph belongs to another backend");
  if (s.recording) return recorded->record_into(s.handle);
  recorded->launch(s.handle);
  if (s.keep.empty() || s.keep.back() != recorded) s.keep.push_back(recorded);
}

void CudaStream::close() {
  if (state_ != nullptr) state_->close();
}

}  // namespace loza
