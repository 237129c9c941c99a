#include "cuda/library_conv.h"

#include <cudnn.h>

#include <array>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"
#include "spdlog/spdlog.h"

namespace sensorium::cuda {
namespace {

void CheckLibrary(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  const std::string failed =
      std::string(what) + ": cuDNN status " + std::to_string(static_cast<int>(status));
  // The library's own memory: the device is as full as where cudaMalloc says so.
  if (status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ||
      status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED) {
    throw CudaError(cudaErrorMemoryAllocation, failed);
  }
  throw std::runtime_error(failed);
}
#define LIBRARY_CHECK(call) CheckLibrary((call), #call)

const char* Name(Type type) { return type == Type::kFloat32 ? "float32" : "bfloat16"; }
cudnnDataType_t DataType(Type type) {
  return type == Type::kFloat32 ? CUDNN_DATA_FLOAT : CUDNN_DATA_BFLOAT16;
}

// A node of the graph API: attributes are set, then it is finalised and only read.
class Node {
 public:
  explicit Node(cudnnBackendDescriptorType_t type) {
    LIBRARY_CHECK(cudnnBackendCreateDescriptor(type, &node_));
  }
  ~Node() {
    if (node_ != nullptr) cudnnBackendDestroyDescriptor(node_);
  }
  Node(Node&& other) noexcept : node_(std::exchange(other.node_, nullptr)) {}
  Node& operator=(Node&&) = delete;

  cudnnBackendDescriptor_t get() const { return node_; }

  template <typename T>
  Node& Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
            std::span<const T> values) {
    LIBRARY_CHECK(cudnnBackendSetAttribute(node_, name, type, static_cast<int64_t>(values.size()),
                                           values.data()));
    return *this;
  }
  template <typename T>
  Node& Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    return Set(name, type, std::span<const T>(&value, 1));
  }
  Node& Set(cudnnBackendAttributeName_t name, const Node& node) {
    return Set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, node.node_);
  }
  template <typename T>
  T Get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type) const {
    T value = {};
    int64_t count = 0;
    LIBRARY_CHECK(cudnnBackendGetAttribute(node_, name, type, 1, &count, &value));
    return value;
  }
  cudnnStatus_t TryFinalize() { return cudnnBackendFinalize(node_); }
  Node& Finalize() {
    LIBRARY_CHECK(cudnnBackendFinalize(node_));
    return *this;
  }

 private:
  cudnnBackendDescriptor_t node_ = nullptr;
};

constexpr int64_t kX = 'x', kW = 'w', kY = 'y';  // names of the graph's tensors

// [n, channels, 1, length] with channels innermost.
Node Tensor(int64_t id, cudnnDataType_t type, int64_t n, int64_t channels, int64_t length,
            int64_t stride) {
  const std::array<int64_t, 4> dims = {n, channels, 1, length};
  const std::array<int64_t, 4> strides = {length * stride, 1, length * stride, stride};
  const int64_t alignment = 16;
  Node tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.Set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id)
      .Set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type)
      .Set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const int64_t>(dims))
      .Set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const int64_t>(strides))
      .Set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment)
      .Finalize();
  return tensor;
}

// y = x * w as the graph's only operation. Nodes hold those that they are made of.
Node ConvolutionGraph(cudnnHandle_t handle, const LibraryConvProblem& p, Type sums) {
  const Conv1dShape& s = p.shape;
  const Node x = Tensor(kX, DataType(p.type), p.seqs, s.in, s.frames, p.x.stride);
  const Node w = Tensor(kW, DataType(p.type), p.out, s.in, s.kernel, s.in);
  const Node y = Tensor(kY, DataType(sums), p.seqs, p.out, s.frames_out, p.out);
  const int64_t dims = 2, before = (s.kernel - 1) / 2;
  const std::array<int64_t, 2> pre = {0, before}, post = {0, s.kernel - 1 - before};
  const std::array<int64_t, 2> strides = {1, s.stride}, dilations = {1, 1};
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  using Ints = std::span<const int64_t>;
  Node convolution(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  convolution.Set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, dims)
      .Set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, compute)
      .Set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, mode)
      .Set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, Ints(pre))
      .Set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, Ints(post))
      .Set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, Ints(strides))
      .Set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, Ints(dilations))
      .Finalize();
  const float one = 1, zero = 0;
  Node forward(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
  forward.Set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, convolution)
      .Set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x)
      .Set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w)
      .Set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y)
      .Set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, one)
      .Set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, zero)
      .Finalize();
  Node graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.Set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle)
      .Set(CUDNN_ATTR_OPERATIONGRAPH_OPS, forward)
      .Finalize();
  return graph;
}

// Engine configurations, best first as cuDNN ranks them.
std::vector<Node> Ranked(const Node& graph, cudnnBackendHeurMode_t mode) {
  constexpr int64_t kMost = 32;
  Node heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.Set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .Set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  if (heuristics.TryFinalize() != CUDNN_STATUS_SUCCESS) return {};
  std::vector<Node> configs;
  std::array<cudnnBackendDescriptor_t, kMost> into;
  for (auto& node : into) {
    configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    node = configs.back().get();
  }
  int64_t found = 0;
  LIBRARY_CHECK(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                         CUDNN_TYPE_BACKEND_DESCRIPTOR, kMost, &found,
                                         into.data()));
  while (static_cast<int64_t>(configs.size()) > found) configs.pop_back();
  return configs;
}

class CudnnConv final : public LibraryConv {
 public:
  CudnnConv(CudaBuffer& workspace, Queue& queue) : workspace_(workspace), queue_(queue) {
    LIBRARY_CHECK(cudnnCreate(&handle_));
    LIBRARY_CHECK(cudnnSetStream(handle_, queue.stream()));
  }
  ~CudnnConv() override {
    plans_.clear();
    cudnnDestroy(handle_);
  }

  const Type* SumsType(const LibraryConvProblem& p) override {
    const Plan& plan = PlanFor(p);
    return plan.plan ? &plan.sums : nullptr;
  }

  void Run(const LibraryConvProblem& p) override {
    Plan& plan = PlanFor(p);
    CHECK(plan.plan.has_value());
    const Node& pack = PackFor(plan, {p.x.data, p.w, p.sums});
    queue_.Do([&] { LIBRARY_CHECK(cudnnBackendExecute(handle_, plan.plan->get(), pack.get())); },
              &cudnnBackendExecute, &plan, p.x.data, p.w, static_cast<const void*>(p.sums));
  }

 private:
  using Addresses = std::array<const void*, 3>;  // of x, w and y
  struct Plan {
    std::optional<Node> config, plan;  // none: there is no engine
    Type sums = Type::kFloat32;
    std::map<Addresses, Node> packs;  // a model's are always the same ones
  };
  using Shape = std::tuple<Type, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

  Plan& PlanFor(const LibraryConvProblem& p) {
    const Conv1dShape& s = p.shape;
    const Shape shape(p.type, p.seqs, s.frames, s.in, p.x.stride, s.kernel, s.stride, p.out);
    const auto at = plans_.find(shape);
    if (at != plans_.end()) return at->second;
    Plan& plan = plans_[shape];
    const std::string what = fmt::format("{} [{}, {}, {}] over {} x {} frames by {}", Name(p.type),
                                         p.out, s.kernel, s.in, p.seqs, s.frames, s.stride);
    if (!Choose(plan, p, Type::kFloat32, what) &&
        (p.type == Type::kFloat32 || !Choose(plan, p, p.type, what))) {
      spdlog::warn("cuDNN {}: no engine for {}; our own kernels do it", cudnnGetVersion(), what);
    }
    return plan;
  }

  // The first configuration that may be used and that a plan can be made of.
  bool Choose(Plan& plan, const LibraryConvProblem& p, Type sums, const std::string& what) {
    const Node graph = ConvolutionGraph(handle_, p, sums);
    for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
      for (Node& config : Ranked(graph, mode)) {
        const int64_t engine = AllowedEngine(config, p.type);
        if (engine < 0) continue;
        Node candidate(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        candidate.Set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle_)
            .Set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
        if (candidate.TryFinalize() != CUDNN_STATUS_SUCCESS) continue;
        const auto bytes =
            candidate.Get<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64);
        if (bytes > static_cast<int64_t>(workspace_.size_bytes())) continue;
        spdlog::info("cuDNN {}: {} pinned, engine {}, sums {}, {} bytes of workspace",
                     cudnnGetVersion(), what, engine, Name(sums), bytes);
        plan.config.emplace(std::move(config));
        plan.plan.emplace(std::move(candidate));
        plan.sums = sums;
        return true;
      }
    }
    return false;
  }

  // The engine's number; -1: its results would depend on more than its inputs, or it computes in
  // less than `type`, or by a transform whose error is more than that of sums in float32.
  int64_t AllowedEngine(const Node& config, Type type) {
    Node engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendDescriptor_t into = engine.get();
    int64_t count = 0;
    LIBRARY_CHECK(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                           CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &into));
    std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes;
    LIBRARY_CHECK(cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                           CUDNN_TYPE_NUMERICAL_NOTE, notes.size(), &count,
                                           notes.data()));
    for (const auto note : std::span(notes).first(static_cast<size_t>(count))) {
      if (note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC ||
          note == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS ||
          note == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) {
        return -1;
      }
      if (type == Type::kFloat32 &&
          (note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE ||  // takes float32 as TF32
           note == CUDNN_NUMERICAL_NOTE_FFT || note == CUDNN_NUMERICAL_NOTE_WINOGRAD ||
           note == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4 ||
           note == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6 ||
           note == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13)) {
        return -1;
      }
    }
    return engine.Get<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64);
  }

  const Node& PackFor(Plan& plan, const Addresses& addresses) {
    const auto at = plan.packs.find(addresses);
    if (at != plan.packs.end()) return at->second;
    const std::array<int64_t, 3> ids = {kX, kW, kY};
    Node pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.Set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::span<const int64_t>(ids))
        .Set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
             std::span<const void* const>(addresses))
        .Set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
             static_cast<void*>(workspace_.data()))
        .Finalize();
    return plan.packs.emplace(addresses, std::move(pack)).first->second;
  }

  CudaBuffer& workspace_;
  Queue& queue_;
  cudnnHandle_t handle_ = nullptr;  // owned
  std::map<Shape, Plan> plans_;
};

}  // namespace

std::unique_ptr<LibraryConv> LibraryConv::Create(CudaBuffer& workspace, Queue& queue) {
  return std::make_unique<CudnnConv>(workspace, queue);
}

}  // namespace sensorium::cuda
