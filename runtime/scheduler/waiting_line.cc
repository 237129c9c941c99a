#include "runtime/scheduler/waiting_line.h"

#include <algorithm>
#include <tuple>

#include "runtime/base/check.h"

namespace sensorium {

WaitingLine::WaitingLine(const std::vector<TenantOptions>& tenants, int64_t starvation_us,
                         int32_t num_slots)
    : starvation_us_(starvation_us), nodes_(num_slots), by_age_(num_slots), by_urgency_(num_slots) {
  CHECK(!tenants.empty());
  for (const TenantOptions& options : tenants) {
    CHECK_GT(options.weight, 0);
    tenants_.push_back({.options = options});
  }
}

bool WaitingLine::Before(const Entry& a, const Entry& b) {
  return std::tuple(-int64_t{a.priority}, a.deadline_us, a.order) <
         std::tuple(-int64_t{b.priority}, b.deadline_us, b.order);
}

void WaitingLine::Push(int32_t slot, const Entry& entry) {
  Node& node = nodes_[slot];
  CHECK(!node.waiting) << slot;
  node = {.entry = entry, .waiting = true};
  Tenant& tenant = tenants_[entry.tenant];
  by_age_.Insert(tenant.oldest, slot, older());
  by_urgency_.Insert(tenant.best, slot, better());
  ++tenant.waiting;
  ++size_;
}

void WaitingLine::Erase(int32_t slot) {
  Node& node = nodes_[slot];
  CHECK(node.waiting) << slot;
  node.waiting = false;
  Tenant& tenant = tenants_[node.entry.tenant];
  by_age_.Erase(tenant.oldest, slot, older());
  by_urgency_.Erase(tenant.best, slot, better());
  --tenant.waiting;
  --size_;
}

int32_t WaitingLine::HeadOf(int32_t t, int64_t now_us) const {
  const Tenant& tenant = tenants_[t];
  if (tenant.waiting == 0) return -1;
  const bool starves = now_us - nodes_[tenant.oldest].entry.arrival_us >= starvation_us_;
  return starves ? tenant.oldest : tenant.best;
}

int32_t WaitingLine::Head(int64_t now_us, const std::vector<char>& blocked) const {
  int32_t chosen = -1;
  for (int32_t t = 0; t < num_tenants(); ++t) {
    if (tenants_[t].waiting == 0 || blocked[t]) continue;
    if (chosen < 0 || tenants_[t].counter < tenants_[chosen].counter) chosen = t;
  }
  return chosen < 0 ? -1 : HeadOf(chosen, now_us);
}

// The lowest counter of those who are active beside it, or kNever.
int64_t WaitingLine::LowestBeside(int32_t t) const {
  int64_t lowest = kNever;
  for (const Tenant& other : tenants_) {
    if (&other != &tenants_[t] && other.active > 0) lowest = std::min(lowest, other.counter);
  }
  return lowest;
}

int64_t WaitingLine::EnteringCounter(int32_t t) const {
  const Tenant& tenant = tenants_[t];
  if (tenant.active > 0) return tenant.counter;
  // Idle time earns nothing: else a tenant could save up and then shut the others out.
  const int64_t lowest = LowestBeside(t);
  return std::max(tenant.counter, lowest == kNever ? floor_ : lowest);
}

void WaitingLine::Enter(int32_t t) {
  Tenant& tenant = tenants_[t];
  tenant.counter = EnteringCounter(t);
  if (tenant.active++ > 0) return;
  const int64_t lowest = LowestBeside(t);
  if (lowest != kNever) floor_ = std::max(floor_, lowest);
}

void WaitingLine::Leave(int32_t t) {
  Tenant& tenant = tenants_[t];
  CHECK_GT(tenant.active, 0);
  if (--tenant.active == 0) floor_ = std::max(floor_, tenant.counter);
}

void WaitingLine::Charge(int32_t t, int64_t cost_ns) {
  tenants_[t].counter += cost_ns * 1000 / tenants_[t].options.weight;
}

void WaitingLine::CheckInvariants() const {
  int32_t total = 0;
  for (const Tenant& tenant : tenants_) {
    CHECK_LE(tenant.waiting, tenant.active);
    CHECK_EQ(tenant.waiting == 0, tenant.oldest < 0);
    CHECK_EQ(tenant.waiting == 0, tenant.best < 0);
    total += tenant.waiting;
  }
  CHECK_EQ(total, size_);
  for (int32_t slot = 0; slot < static_cast<int32_t>(nodes_.size()); ++slot) {
    if (!nodes_[slot].waiting) continue;
    --total;
    const Tenant& tenant = tenants_[nodes_[slot].entry.tenant];
    by_age_.CheckInvariants(tenant.oldest, slot, older());
    by_urgency_.CheckInvariants(tenant.best, slot, better());
  }
  CHECK_EQ(total, 0);
}

}  // namespace sensorium
