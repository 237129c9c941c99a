// Which admitted job gives its memory up next: of all, and of one tenant. Those that go early, then
// the lowest priority, then the youngest; behind all who have not starved those who have, the
// youngest first, so that no stream of others keeps them out for ever. O(log n), storage is taken at
// construction. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/scheduler/leftist_forest.h"

namespace sensorium {

class PreemptionOrder {
 public:
  PreemptionOrder(int32_t num_tenants, int32_t num_slots);

  struct Entry {
    int32_t tenant = 0;
    bool early = false;    // before its turn, which is by priority and age
    bool starved = false;  // it has waited so long that only its age counts
    int32_t priority = 0;
    int64_t order = 0;  // of arrival, unique
  };
  void Insert(int32_t slot, const Entry& entry);  // REQUIRES: !Contains(slot)
  void Erase(int32_t slot);                       // REQUIRES: Contains(slot), as below
  void SetEarly(int32_t slot, bool early);
  bool Contains(int32_t slot) const { return inside_[slot]; }

  int32_t First() const { return first_; }  // a slot; -1: nobody is here
  int32_t FirstOf(int32_t tenant) const { return first_of_[tenant]; }

  void CheckInvariants() const;

 private:
  bool Before(int32_t a, int32_t b) const;
  auto before() const {
    return [this](int32_t a, int32_t b) { return Before(a, b); };
  }

  std::vector<Entry> entries_;  // by slot
  std::vector<char> inside_;    // by slot
  LeftistForest all_, by_tenant_;
  int32_t first_ = -1;
  std::vector<int32_t> first_of_;  // by tenant
};

}  // namespace sensorium
