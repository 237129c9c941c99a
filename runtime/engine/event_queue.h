// A request's way back: a bounded queue of events between the engine and one reader.
//
// Thread-safe. The engine asks HasRoom() before it schedules the request's next token, so that a slow
// reader parks its own sequence and nobody else's; Push itself never blocks and never drops. Shared
// by the reader and the engine, since each can outlive the other.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>

namespace sensorium {

template <typename Event>
class EventQueue {
 public:
  explicit EventQueue(size_t soft_limit = 64) : soft_limit_(soft_limit) {}

  // ---- Engine's side
  bool HasRoom() const {
    std::lock_guard lock(mu_);
    return events_.size() < soft_limit_;
  }
  bool cancelled() const {
    std::lock_guard lock(mu_);
    return cancelled_;
  }
  void Push(Event event) {
    std::function<void()> wake;
    {
      std::lock_guard lock(mu_);
      if (cancelled_) return;
      events_.push_back(std::move(event));
      wake = on_ready_;
    }
    ready_.notify_one();
    if (wake) wake();
  }

  // ---- Reader's side
  std::optional<Event> TryPop() {
    std::optional<Event> event;
    std::function<void()> room;
    {
      std::lock_guard lock(mu_);
      if (events_.empty()) return std::nullopt;
      const bool was_full = events_.size() == soft_limit_;
      event = std::move(events_.front());
      events_.pop_front();
      if (was_full) room = on_room_;
    }
    if (room) room();  // the parked sequence may go on
    return event;
  }
  // Blocks until there is an event. The caller stops after StreamEnd, which always comes.
  Event Pop() {
    while (true) {
      if (auto event = TryPop()) return *std::move(event);
      std::unique_lock lock(mu_);
      ready_.wait(lock, [&] { return !events_.empty(); });
    }
  }
  // Nobody reads on; everything the request owns is freed by the next step. Idempotent.
  void Cancel() {
    std::function<void()> room;
    {
      std::lock_guard lock(mu_);
      cancelled_ = true;
      room = on_room_;
    }
    if (room) room();
  }
  // Called after each Push, from the pushing thread, without the lock; must not block. Set it (or
  // clear it with nullptr) once; events pushed before are there for TryPop.
  void SetOnReady(std::function<void()> on_ready) {
    std::lock_guard lock(mu_);
    on_ready_ = std::move(on_ready);
  }
  // The engine's wake-up: a full queue has room again, or the reader cancelled.
  void SetOnRoom(std::function<void()> on_room) {
    std::lock_guard lock(mu_);
    on_room_ = std::move(on_room);
  }

 private:
  const size_t soft_limit_;
  mutable std::mutex mu_;
  std::condition_variable ready_;
  std::deque<Event> events_;        // guarded by mu_, as all below
  bool cancelled_ = false;
  std::function<void()> on_ready_;
  std::function<void()> on_room_;
};

}  // namespace sensorium
