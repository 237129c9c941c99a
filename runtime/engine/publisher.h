// The engine's voice: one thread that says what its steps found. Text is put together, events are
// made and readers are woken here, so that a step takes no memory and waits for nobody.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace sensorium {

class Publisher;

// Something that has news now and then. What it holds is shared between the engine's thread, which
// fills it, and the publisher's, which empties it: it synchronises itself.
class Publishable {
 public:
  virtual ~Publishable() = default;
  virtual void Publish() = 0;  // says all there is; the publisher's thread

 private:
  friend class Publisher;
  // Guarded by Publisher::mu_.
  std::shared_ptr<Publishable> self_;  // alive while it stands in the line
  Publishable* next_ = nullptr;
};

class Publisher {
 public:
  Publisher();
  ~Publisher();  // says what stands in the line, then joins

  // Has it Publish soon, once for all that was posted before. Thread-safe; takes no memory.
  void Post(std::shared_ptr<Publishable> news);

 private:
  void Run();

  std::mutex mu_;
  std::condition_variable wake_;
  Publishable* first_ = nullptr;  // guarded by mu_, as all below
  Publishable* last_ = nullptr;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace sensorium
