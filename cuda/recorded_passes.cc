#include "cuda/recorded_passes.h"

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"
#include "spdlog/spdlog.h"

namespace sensorium::cuda {
namespace {

// A stream's capture, dropped where it does not come to its end.
class Capture {
 public:
  // Throws CudaError.
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    // What would wait or take memory fails while this thread captures.
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }
  ~Capture() {
    if (!ended_) cudaStreamEndCapture(stream_, &graph_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraphExec_t Instantiate() {
    ended_ = true;
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph_));
    cudaGraphExec_t exec = nullptr;
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph_, 0));
    return exec;
  }

 private:
  const cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool ended_ = false;
};

}  // namespace

RecordedPasses::~RecordedPasses() {
  for (auto& [key, pass] : passes_) cudaGraphExecDestroy(pass.graph);
}

size_t RecordedPasses::RunOps(absl::FunctionRef<void()> ops, size_t begin, size_t end) {
  uploads_.EnterRange(begin, end);
  try {
    ops();
  } catch (...) {
    uploads_.LeaveRange();
    queue_.Stop();
    recorded_ops_ = nullptr;
    throw;
  }
  recorded_ops_ = nullptr;
  return uploads_.LeaveRange();
}

bool RecordedPasses::Record(const PassKey& key, absl::FunctionRef<void()> ops) {
  CHECK(!passes_.contains(key)) << "recorded twice: " << key.rows << " rows, " << key.context;
  Pass pass;
  pass.range_begin = range_used_;
  Capture capture(queue_.stream());
  queue_.Record(pass.calls);
  recorded_ops_ = &pass.ops;
  pass.range_bytes = RunOps(ops, pass.range_begin, uploads_.range_bytes());
  queue_.Stop();
  if (queue_.gave_up() != nullptr) {
    spdlog::warn("a pass of {} rows up to a context of {} is not recorded: {}", key.rows,
                 key.context, queue_.gave_up());
    return false;
  }
  pass.graph = capture.Instantiate();
  CUDA_CHECK(cudaGraphUpload(pass.graph, queue_.stream()));
  range_used_ += pass.range_bytes;
  passes_.emplace(key, std::move(pass));
  return true;
}

bool RecordedPasses::Replay(const PassKey& key, absl::FunctionRef<void()> ops, OpCounts& queued) {
  const auto at = passes_.find(key);
  if (at == passes_.end()) return false;
  Pass& pass = at->second;
  if (pass.replayed_at == queue_.waits()) queue_.Wait();  // its arrays may not have been read yet
  first_that_differs_ = nullptr;
  queue_.Compare(pass.calls);
  RunOps(ops, pass.range_begin, pass.range_begin + pass.range_bytes);
  if (!queue_.Stop()) {
    const char* why_not = queue_.gave_up() != nullptr      ? queue_.gave_up()
                          : first_that_differs_ != nullptr ? first_that_differs_
                                                           : "it ends before";
    if (!std::exchange(pass.told, true)) {
      spdlog::warn("a pass of {} rows up to a context of {} is not the recorded one: {}", key.rows,
                   key.context, why_not);
    }
    return false;
  }
  uploads_.SendRange(pass.range_begin, pass.range_bytes);
  CUDA_CHECK(cudaGraphLaunch(pass.graph, queue_.stream()));
  pass.replayed_at = queue_.waits();
  queued.Add(pass.ops);
  return true;
}

void RecordedPasses::OpDone(const char* name) {
  if (recorded_ops_ != nullptr) {
    recorded_ops_->Add(name, 1);
  } else if (!queue_.same() && first_that_differs_ == nullptr) {
    first_that_differs_ = name;
  }
}

}  // namespace sensorium::cuda
