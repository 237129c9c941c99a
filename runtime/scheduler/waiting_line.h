// Who is admitted next: tenants by fair share, a tenant's requests by priority and deadline.
//
// Between tenants: the virtual token counter of Sheng et al. 2024 (arXiv:2401.00588), charged in
// predicted nanoseconds over the tenant's weight instead of tokens; the tenant with the lowest
// counter goes next, and one that comes back from idleness starts at the lowest active counter.
// Within a tenant: higher priority, then earlier deadline, then earlier arrival. A request that has
// waited `starvation_us` goes before all of its tenant's younger ones whatever their priority, so
// none waits longer than that plus the time in which its tenant's share serves those that came
// before it. Between tenants the share decides, also for the starving: a weight says how little.
//
// Storage is taken at construction. A change is O(log n), asking is O(tenants). Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/scheduler/job.h"
#include "runtime/scheduler/leftist_forest.h"

namespace sensorium {

struct TenantOptions {
  int32_t weight = 1000;    // of the share, in thousandths; > 0
  int32_t max_waiting = 0;  // requests in line; 0: Scheduler's default
  bool known = false;       // even before its first request comes, see Scheduler::MostWaiting
  int32_t max_running = std::numeric_limits<int32_t>::max();  // requests admitted
  int32_t max_blocks = std::numeric_limits<int32_t>::max();   // KV blocks set aside
};

class WaitingLine {
 public:
  // At most `capacity` jobs wait; their slots are in [0, num_slots).
  WaitingLine(const std::vector<TenantOptions>& tenants, int64_t starvation_us, int32_t num_slots);

  struct Entry {
    int32_t tenant = 0;
    int32_t priority = 0;
    int64_t deadline_us = kNever;
    int64_t arrival_us = 0;
    int64_t order = 0;  // of arrival, unique; a preempted job keeps its own
  };
  void Push(int32_t slot, const Entry& entry);
  void Erase(int32_t slot);  // REQUIRES: it waits
  bool Contains(int32_t slot) const { return nodes_[slot].waiting; }

  // The job to admit next at `now_us`, or -1. Tenants for which `blocked[tenant]` is set are
  // passed over.
  int32_t Head(int64_t now_us, const std::vector<char>& blocked) const;
  int32_t HeadOf(int32_t tenant, int64_t now_us) const;

  // A tenant's work: `active` counts its waiting and admitted requests.
  void Enter(int32_t tenant);  // one more request; lifts an idle tenant's counter
  int64_t EnteringCounter(int32_t tenant) const;  // what it would be after that
  void Leave(int32_t tenant);
  void Charge(int32_t tenant, int64_t cost_ns);
  int64_t counter(int32_t tenant) const { return tenants_[tenant].counter; }

  int32_t size() const { return size_; }
  int32_t size_of(int32_t tenant) const { return tenants_[tenant].waiting; }
  int32_t num_tenants() const { return static_cast<int32_t>(tenants_.size()); }
  const TenantOptions& options(int32_t tenant) const { return tenants_[tenant].options; }
  void CheckInvariants() const;

 private:
  struct Node {
    Entry entry;
    bool waiting = false;
  };
  struct Tenant {
    TenantOptions options;
    int64_t counter = 0;  // virtual nanoseconds
    int32_t active = 0;
    int32_t waiting = 0;
    int32_t oldest = -1;  // slots, -1: nobody waits
    int32_t best = -1;    // by priority and deadline
  };
  auto older() const {
    return [this](int32_t a, int32_t b) { return nodes_[a].entry.order < nodes_[b].entry.order; };
  }
  auto better() const {
    return [this](int32_t a, int32_t b) { return Before(nodes_[a].entry, nodes_[b].entry); };
  }
  static bool Before(const Entry& a, const Entry& b);
  int64_t LowestBeside(int32_t tenant) const;

  const int64_t starvation_us_;
  std::vector<Tenant> tenants_;
  std::vector<Node> nodes_;            // by slot
  LeftistForest by_age_, by_urgency_;  // a heap of each for each tenant
  int32_t size_ = 0;
  int64_t floor_ = 0;  // the lowest counter of the active tenants when last somebody was active
};

}  // namespace sensorium
