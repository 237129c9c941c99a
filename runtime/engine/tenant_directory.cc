#include "runtime/engine/tenant_directory.h"

#include "runtime/base/check.h"

namespace sensorium {

TenantDirectory::TenantDirectory(std::span<const TenantConfig> configured, int32_t max_tenants)
    : num_configured_(static_cast<int32_t>(configured.size())) {
  CHECK_GT(max_tenants, num_configured_);
  places_.resize(max_tenants);
  for (int32_t i = 0; i < num_configured_; ++i) {
    places_[i].name = configured[i].name;
    places_[i].taken = places_[i].known = true;
    by_name_.emplace(configured[i].name, i);
  }
  known_ = num_configured_;
}

TenantDirectory::Entered TenantDirectory::AddTo(int32_t index) {
  Place& place = places_[index];
  known_ += !place.known;
  place.known = true;
  return {.index = index, .requests = ++place.requests, .known = known_};
}

TenantDirectory::Entered TenantDirectory::Enter(std::string_view name) {
  std::lock_guard lock(mu_);
  if (const auto known = by_name_.find(name); known != by_name_.end()) {
    return AddTo(known->second);
  }
  int32_t chosen = others();
  for (int32_t i = num_configured_; i < others(); ++i) {
    const Place& place = places_[i];
    if (place.requests > 0) continue;
    if (!place.taken) {
      chosen = i;
      break;
    }
    if (chosen == others() || place.idle_since < places_[chosen].idle_since) chosen = i;
  }
  Place& place = places_[chosen];
  if (chosen != others()) {
    if (place.taken) by_name_.erase(by_name_.find(place.name));
    place.name = name;
    place.taken = true;
    by_name_.emplace(place.name, chosen);
  }
  return AddTo(chosen);
}

void TenantDirectory::Leave(int32_t index) {
  std::lock_guard lock(mu_);
  Place& place = places_[index];
  CHECK_GT(place.requests, 0);
  if (--place.requests == 0) place.idle_since = ++leaves_;
}

}  // namespace sensorium
