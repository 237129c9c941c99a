// Names of tenants -> the small indices that the scheduler counts by. A stranger's name costs a place
// only while it has requests, so inventing names wins nothing. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/engine.h"

namespace sensorium {

class TenantDirectory {
 public:
  // Indices are [0, max_tenants): the configured tenants in order, then those that come, and last
  // one shared by all for whom no place is free. REQUIRES: max_tenants > configured.size().
  TenantDirectory(std::span<const TenantConfig> configured, int32_t max_tenants);

  // The index of one more request. A name keeps its index while it has requests, and after that
  // until a newcomer needs the place (the one idle for longest goes first).
  int32_t Enter(std::string_view name);
  void Leave(int32_t index);  // REQUIRES: one of its Enters is not yet left

  int32_t others() const { return static_cast<int32_t>(places_.size()) - 1; }

 private:
  struct Place {
    std::string name;
    bool taken = false;       // name means something
    int32_t requests = 0;
    int64_t idle_since = 0;   // in Leaves
  };
  const int32_t num_configured_;
  std::mutex mu_;
  std::vector<Place> places_;  // guarded by mu_, as below; by index
  std::map<std::string, int32_t, std::less<>> by_name_;
  int64_t leaves_ = 0;
};

}  // namespace sensorium
