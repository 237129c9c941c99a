// The one graph of cuDNN that the backend makes: a forward convolution with float sums, channels
// innermost, queued like a kernel. Its engines are six, best first: one that is not deterministic,
// one that no plan can be made of, one on the matrix units, two by transforms and a plain one.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/include/cudnn.h"

namespace cuda_emu {
namespace {

constexpr size_t kWorkspaceBytes = 1 << 20;  // all of it is used, so that too little shows

struct Engine {
  int64_t index;
  std::vector<cudnnBackendNumericalNote_t> notes;
  bool has_plan;
};
const std::array<Engine, 6> kEngines = {
    Engine{7, {CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}, true},
    Engine{5, {}, false},
    Engine{3, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE}, true},
    Engine{6, {CUDNN_NUMERICAL_NOTE_WINOGRAD, CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6}, true},
    Engine{4, {CUDNN_NUMERICAL_NOTE_FFT}, true},
    Engine{1, {}, true}};
CudnnLimits limits;

size_t SizeOf(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    case CUDNN_TYPE_DATA_TYPE:
    case CUDNN_TYPE_FLOAT:
    case CUDNN_TYPE_CONVOLUTION_MODE:
    case CUDNN_TYPE_HEUR_MODE:
    case CUDNN_TYPE_NUMERICAL_NOTE:
      return 4;
  }
  return 0;
}

}  // namespace

void LimitCudnn(const CudnnLimits& to) { limits = to; }

struct CudnnHandle {
  cudaStream_t stream = nullptr;
};
struct CudnnNode {
  cudnnBackendDescriptorType_t type;
  bool final = false;
  std::map<int, std::vector<std::byte>> values;
  std::map<int, std::shared_ptr<const CudnnNode>> nodes;  // as they were when they were set
  const Engine* engine = nullptr;

  template <typename T>
  std::vector<T> All(cudnnBackendAttributeName_t name) const {
    const auto at = values.find(name);
    if (at == values.end()) return {};
    std::vector<T> all(at->second.size() / sizeof(T));
    std::memcpy(all.data(), at->second.data(), all.size() * sizeof(T));
    return all;
  }
  template <typename T>
  T One(cudnnBackendAttributeName_t name) const {
    const std::vector<T> all = All<T>(name);
    return all.size() == 1 ? all[0] : T{};
  }
  const CudnnNode* Child(cudnnBackendAttributeName_t name) const {
    const auto at = nodes.find(name);
    return at == nodes.end() ? nullptr : at->second.get();
  }
};

namespace {

using Dims = std::vector<int64_t>;

struct Tensor {
  int64_t id;
  cudnnDataType_t type;
  Dims dims, strides;
};
Tensor TensorOf(const CudnnNode& n) {
  return {n.One<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID),
          n.One<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE),
          n.All<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS), n.All<int64_t>(CUDNN_ATTR_TENSOR_STRIDES)};
}

float At(const void* p, cudnnDataType_t type, int64_t i) {
  if (type == CUDNN_DATA_FLOAT) return static_cast<const float*>(p)[i];
  return std::bit_cast<float>(uint32_t{static_cast<const uint16_t*>(p)[i]} << 16);
}
void Put(void* p, cudnnDataType_t type, int64_t i, float v) {
  if (type == CUDNN_DATA_FLOAT) {
    static_cast<float*>(p)[i] = v;
  } else {
    const auto bits = std::bit_cast<uint32_t>(v);
    static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

// What is executed, checked: [n, c, 1, length] tensors whose rows lie apart as they like.
struct Convolution {
  Tensor x, w, y;
  int64_t before = 0, stride = 0;
};
bool Read(const CudnnNode& graph, Convolution* c) {
  const CudnnNode* op = graph.Child(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  if (op == nullptr) return false;
  const CudnnNode* how = op->Child(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC);
  const CudnnNode* x = op->Child(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X);
  const CudnnNode* w = op->Child(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W);
  const CudnnNode* y = op->Child(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y);
  if (!how || !x || !w || !y) return false;
  c->x = TensorOf(*x), c->w = TensorOf(*w), c->y = TensorOf(*y);
  const Dims pre = how->All<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
  const Dims post = how->All<int64_t>(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS);
  const Dims strides = how->All<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
  const bool plain =
      how->One<int64_t>(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) == 2 &&
      how->One<cudnnDataType_t>(CUDNN_ATTR_CONVOLUTION_COMP_TYPE) == CUDNN_DATA_FLOAT &&
      how->One<cudnnConvolutionMode_t>(CUDNN_ATTR_CONVOLUTION_CONV_MODE) ==
          CUDNN_CROSS_CORRELATION &&
      how->All<int64_t>(CUDNN_ATTR_CONVOLUTION_DILATIONS) == Dims{1, 1} &&
      op->One<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA) == 1.f &&
      op->One<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA) == 0.f && pre.size() == 2 &&
      post.size() == 2 && strides.size() == 2 && pre[0] == 0 && post[0] == 0 && strides[0] == 1;
  if (!plain) return false;
  c->before = pre[1], c->stride = strides[1];
  for (const Tensor* t : {&c->x, &c->w, &c->y}) {
    if (t->dims.size() != 4 || t->strides.size() != 4 || t->dims[2] != 1 || t->strides[1] != 1 ||
        t->strides[3] < t->dims[1]) {
      return false;
    }
  }
  const int64_t padded = c->x.dims[3] + pre[1] + post[1];
  return c->x.type == c->w.type && c->x.dims[0] == c->y.dims[0] && c->x.dims[1] == c->w.dims[1] &&
         c->w.dims[0] == c->y.dims[1] && c->w.strides[3] == c->w.dims[1] &&
         c->y.dims[3] == (padded - c->w.dims[3]) / c->stride + 1 &&
         (c->y.type == c->x.type || (c->y.type == CUDNN_DATA_FLOAT && !limits.no_wider_sums));
}

void RunConvolution(const Convolution& c, const void* x, const void* w, void* y) {
  const int64_t channels = c.x.dims[1], taps = c.w.dims[3];
  for (int64_t n = 0; n < c.y.dims[0]; ++n) {
    for (int64_t t = 0; t < c.y.dims[3]; ++t) {
      for (int64_t k = 0; k < c.y.dims[1]; ++k) {
        float sum = 0;
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t frame = t * c.stride + tap - c.before;
          if (frame < 0 || frame >= c.x.dims[3]) continue;
          const int64_t x_at = n * c.x.strides[0] + frame * c.x.strides[3];
          const int64_t w_at = k * c.w.strides[0] + tap * c.w.strides[3];
          for (int64_t i = 0; i < channels; ++i) {
            sum += At(x, c.x.type, x_at + i) * At(w, c.w.type, w_at + i);
          }
        }
        Put(y, c.y.type, n * c.y.strides[0] + t * c.y.strides[3] + k, sum);
      }
    }
  }
}

}  // namespace
}  // namespace cuda_emu

using cuda_emu::CudnnNode;

size_t cudnnGetVersion() { return 90000; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  if (cuda_emu::NextAllocationFails()) return CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
  *handle = new cuda_emu::CudnnHandle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* node) {
  *node = new CudnnNode{.type = type};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t node) {
  delete node;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t node,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void* values) {
  if (node->final || count < 1 || cuda_emu::SizeOf(type) == 0) return CUDNN_STATUS_BAD_PARAM;
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    const CudnnNode* child = *static_cast<const cudnnBackendDescriptor_t*>(values);
    if (count != 1 || !child->final) return CUDNN_STATUS_BAD_PARAM;
    node->nodes[name] = std::make_shared<const CudnnNode>(*child);
    return CUDNN_STATUS_SUCCESS;
  }
  const auto* bytes = static_cast<const std::byte*>(values);
  node->values[name].assign(bytes, bytes + count * cuda_emu::SizeOf(type));
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t node) {
  if (node->final) return CUDNN_STATUS_BAD_PARAM;
  cuda_emu::Convolution convolution;
  if (node->type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR &&
      node->One<cudnnHandle_t>(CUDNN_ATTR_OPERATIONGRAPH_HANDLE) == nullptr) {
    return CUDNN_STATUS_BAD_PARAM;
  }
  if (node->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR) {
    const CudnnNode* graph = node->Child(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    if (graph == nullptr) return CUDNN_STATUS_BAD_PARAM;
    if (!cuda_emu::Read(*graph, &convolution)) return CUDNN_STATUS_NOT_SUPPORTED;
  }
  if (node->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    const CudnnNode* config = node->Child(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    if (config == nullptr || config->engine == nullptr) return CUDNN_STATUS_BAD_PARAM;
    if (!config->engine->has_plan) return CUDNN_STATUS_NOT_SUPPORTED;
  }
  node->final = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t node,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t wanted, int64_t* count,
                                       void* values) {
  *count = 0;
  if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) {
    const bool fallback =
        node->One<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK;
    for (const cuda_emu::Engine& engine : cuda_emu::kEngines) {
      if (fallback || *count == std::min<int64_t>(wanted, cuda_emu::limits.engines)) break;
      CudnnNode& config = *static_cast<cudnnBackendDescriptor_t*>(values)[(*count)++];
      config.engine = &engine;
      config.nodes = node->nodes;  // the graph
      config.final = true;
    }
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_ENGINECFG_ENGINE && node->engine != nullptr) {
    CudnnNode& engine = **static_cast<cudnnBackendDescriptor_t*>(values);
    engine.engine = node->engine;
    engine.final = true;
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX && node->engine != nullptr) {
    *static_cast<int64_t*>(values) = node->engine->index;
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE && node->engine != nullptr) {
    for (const auto note : node->engine->notes) {
      static_cast<cudnnBackendNumericalNote_t*>(values)[(*count)++] = note;
    }
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && node->final) {
    *static_cast<int64_t*>(values) = cuda_emu::kWorkspaceBytes;
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  return CUDNN_STATUS_BAD_PARAM;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  const sensorium::AllowedAllocation allowed;
  const CudnnNode* config =
      plan->final ? plan->Child(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG) : nullptr;
  const CudnnNode* graph =
      config == nullptr ? nullptr : config->Child(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
  cuda_emu::Convolution c;
  if (graph == nullptr || !pack->final || !cuda_emu::Read(*graph, &c)) {
    return CUDNN_STATUS_BAD_PARAM;
  }
  const auto ids = pack->All<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = pack->All<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  void* workspace = pack->One<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  const auto find = [&](const cuda_emu::Tensor& t) -> void* {
    for (size_t i = 0; i < ids.size() && i < pointers.size(); ++i) {
      const bool aligned = reinterpret_cast<uintptr_t>(pointers[i]) % 16 == 0;
      if (ids[i] == t.id && aligned) return pointers[i];
    }
    return nullptr;
  };
  void *x = find(c.x), *w = find(c.w), *y = find(c.y);
  if (x == nullptr || w == nullptr || y == nullptr || workspace == nullptr) {
    return CUDNN_STATUS_BAD_PARAM;
  }
  const cudaError_t queued = cuda_emu::Launch(
      1, 1, 0, handle->stream,
      [=] {
        std::memset(workspace, 0xff, cuda_emu::kWorkspaceBytes);
        cuda_emu::RunConvolution(c, x, w, y);
      },
      config->engine);
  return queued == cudaSuccess ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}
