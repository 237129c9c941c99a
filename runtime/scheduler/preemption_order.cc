#include "runtime/scheduler/preemption_order.h"

#include <tuple>

#include "runtime/base/check.h"

namespace sensorium {

PreemptionOrder::PreemptionOrder(int32_t num_tenants, int32_t num_slots)
    : entries_(num_slots),
      inside_(num_slots),
      all_(num_slots),
      by_tenant_(num_slots),
      first_of_(num_tenants, -1) {}

bool PreemptionOrder::Before(int32_t a, int32_t b) const {
  const Entry &x = entries_[a], &y = entries_[b];
  const auto key = [](const Entry& e) {
    return std::tuple(!e.early, e.starved, e.starved ? 0 : e.priority, -e.order);
  };
  return key(x) < key(y);
}

void PreemptionOrder::Insert(int32_t slot, const Entry& entry) {
  CHECK(!inside_[slot]) << slot;
  inside_[slot] = true;
  entries_[slot] = entry;
  all_.Insert(first_, slot, before());
  by_tenant_.Insert(first_of_[entry.tenant], slot, before());
}

void PreemptionOrder::Erase(int32_t slot) {
  CHECK(inside_[slot]) << slot;
  inside_[slot] = false;
  all_.Erase(first_, slot, before());
  by_tenant_.Erase(first_of_[entries_[slot].tenant], slot, before());
}

void PreemptionOrder::SetEarly(int32_t slot, bool early) {
  CHECK(inside_[slot]) << slot;
  if (entries_[slot].early == early) return;
  Entry entry = entries_[slot];
  entry.early = early;
  Erase(slot);
  Insert(slot, entry);
}

void PreemptionOrder::CheckInvariants() const {
  for (int32_t slot = 0; slot < static_cast<int32_t>(entries_.size()); ++slot) {
    if (!inside_[slot]) continue;
    all_.CheckInvariants(first_, slot, before());
    by_tenant_.CheckInvariants(first_of_[entries_[slot].tenant], slot, before());
  }
}

}  // namespace sensorium
