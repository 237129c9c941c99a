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

  // The index of one more request, and what is known of its tenant with it. A name keeps its index while it has requests, and after that
  // until a newcomer needs the place (the one idle for longest goes first).
  struct Entered {
    int32_t index = 0;
    int32_t requests = 0;  // of this tenant, this one among them
    int32_t known = 0;     // tenants that are configured or were ever seen
  };
  Entered Enter(std::string_view name);
  void Leave(int32_t index);  // REQUIRES: one of its Enters is not yet left

  int32_t others() const { return static_cast<int32_t>(places_.size()) - 1; }

 private:
  Entered AddTo(int32_t index);  // REQUIRES: mu_

  struct Place {
    std::string name;
    bool taken = false;       // name means something
    bool known = false;       // configured, or somebody had it
    int32_t requests = 0;
    int64_t idle_since = 0;   // in Leaves
  };
  const int32_t num_configured_;
  std::mutex mu_;
  std::vector<Place> places_;  // guarded by mu_, as below; by index
  std::map<std::string, int32_t, std::less<>> by_name_;
  int64_t leaves_ = 0;
  int32_t known_ = 0;  // places
};

}  // namespace sensorium
