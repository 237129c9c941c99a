#include "runtime/scheduler/waiting_line.h"

#include <algorithm>
#include <tuple>

#include "runtime/base/check.h"

namespace sensorium {

WaitingLine::WaitingLine(const std::vector<TenantOptions>& tenants, int64_t starvation_us,
                         int32_t num_slots)
    : starvation_us_(starvation_us), nodes_(num_slots) {
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
  Tenant& tenant = tenants_[entry.tenant];
  node = {.entry = entry, .waiting = true};
  // New ones come last; a preempted one goes back to its place, near the front.
  int32_t behind = -1, before = tenant.last;
  while (before >= 0 && nodes_[before].entry.order > entry.order) {
    behind = before;
    before = nodes_[before].before;
  }
  node.before = before;
  node.behind = behind;
  (before < 0 ? tenant.first : nodes_[before].behind) = slot;
  (behind < 0 ? tenant.last : nodes_[behind].before) = slot;
  if (tenant.waiting == 0) {
    tenant.best = slot;
  } else if (tenant.best >= 0 && Before(entry, nodes_[tenant.best].entry)) {
    tenant.best = slot;
  }
  ++tenant.waiting;
  ++size_;
}

void WaitingLine::Erase(int32_t slot) {
  Node& node = nodes_[slot];
  CHECK(node.waiting) << slot;
  Tenant& tenant = tenants_[node.entry.tenant];
  (node.before < 0 ? tenant.first : nodes_[node.before].behind) = node.behind;
  (node.behind < 0 ? tenant.last : nodes_[node.behind].before) = node.before;
  if (tenant.best == slot) tenant.best = -1;
  node.waiting = false;
  --tenant.waiting;
  --size_;
}

int32_t WaitingLine::HeadOf(int32_t t, int64_t now_us) {
  Tenant& tenant = tenants_[t];
  if (tenant.waiting == 0) return -1;
  if (now_us - nodes_[tenant.first].entry.arrival_us >= starvation_us_) return tenant.first;
  if (tenant.best < 0) {
    tenant.best = tenant.first;
    for (int32_t slot = tenant.first; slot >= 0; slot = nodes_[slot].behind) {
      if (Before(nodes_[slot].entry, nodes_[tenant.best].entry)) tenant.best = slot;
    }
  }
  return tenant.best;
}

int32_t WaitingLine::Head(int64_t now_us, const std::vector<char>& blocked) {
  int32_t chosen = -1;
  for (int32_t t = 0; t < num_tenants(); ++t) {
    if (tenants_[t].waiting == 0 || blocked[t]) continue;
    if (chosen < 0 || tenants_[t].counter < tenants_[chosen].counter) chosen = t;
  }
  return chosen < 0 ? -1 : HeadOf(chosen, now_us);
}

void WaitingLine::Enter(int32_t t) {
  Tenant& tenant = tenants_[t];
  if (tenant.active++ > 0) return;
  // Idle time earns nothing: else a tenant could save up and then shut the others out.
  int64_t lowest = kNever;
  for (const Tenant& other : tenants_) {
    if (&other != &tenant && other.active > 0) lowest = std::min(lowest, other.counter);
  }
  if (lowest != kNever) floor_ = std::max(floor_, lowest);
  tenant.counter = std::max(tenant.counter, lowest == kNever ? floor_ : lowest);
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
    int32_t count = 0;
    int32_t before = -1;
    for (int32_t slot = tenant.first; slot >= 0; slot = nodes_[slot].behind) {
      CHECK(nodes_[slot].waiting);
      CHECK_EQ(nodes_[slot].before, before);
      CHECK(before < 0 || nodes_[before].entry.order < nodes_[slot].entry.order);
      before = slot;
      ++count;
    }
    CHECK_EQ(tenant.last, before);
    CHECK_EQ(count, tenant.waiting);
    CHECK_LE(count, tenant.active);
    CHECK(tenant.best < 0 || nodes_[tenant.best].waiting);
    total += count;
  }
  CHECK_EQ(total, size_);
}

}  // namespace sensorium
