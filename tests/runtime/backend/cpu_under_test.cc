#include "absl/strings/str_cat.h"
#include "runtime/cpu/cpu_backend.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {

std::vector<BackendUnderTest> BackendsUnderTest() {
  std::vector<BackendUnderTest> backends;
  for (const CpuLevel level : AvailableCpuLevels()) {
    backends.push_back({std::string(Name(level)), [level](DType dtype, int threads) {
                          auto backend = CpuBackend::Create(
                              {.dtype = dtype, .threads = threads, .level = level});
                          CHECK(backend.ok()) << backend.status().ToString();
                          return std::move(backend).value();
                        }});
  }
  return backends;
}

}  // namespace sensorium
