#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <memory_resource>
#include <new>

#include "cuda/cuda_backend.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {
namespace {

// Memory that the host and the device both reach: what the suite's matrices lie in.
class ManagedMemory final : public std::pmr::memory_resource {
  void* do_allocate(size_t bytes, size_t) override {
    void* p = nullptr;
    if (cudaMallocManaged(&p, bytes == 0 ? 1 : bytes) != cudaSuccess) throw std::bad_alloc();
    return p;
  }
  void do_deallocate(void* p, size_t, size_t) override { cudaFree(p); }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace

std::vector<BackendUnderTest> BackendsUnderTest() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::puts("no CUDA device: nothing was tested");
    std::exit(77);  // ctest: skipped
  }
  static ManagedMemory memory;
  std::pmr::set_default_resource(&memory);
  const auto open = [](Determinism determinism) {
    return [determinism](DType dtype, int) {
      auto backend = CudaBackend::Create(
          {.dtype = dtype, .determinism = determinism, .wait_after_each_op = true});
      CHECK(backend.ok()) << backend.status();
      return std::move(backend).value();
    };
  };
  // kFast: what is true of a library's products and convolutions, too.
  return {{"cuda", open(Determinism::kStrict)},
          {.name = "cuda_fast", .make = open(Determinism::kFast), .fast = true}};
}

}  // namespace sensorium
