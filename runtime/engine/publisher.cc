#include "runtime/engine/publisher.h"

#include <utility>

namespace sensorium {

Publisher::Publisher() : thread_([this] { Run(); }) {}

Publisher::~Publisher() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Publisher::Post(std::shared_ptr<Publishable> news) {
  {
    std::lock_guard lock(mu_);
    if (news->self_) return;  // stands in the line already
    Publishable* const added = news.get();
    added->self_ = std::move(news);
    (last_ ? last_->next_ : first_) = added;
    last_ = added;
  }
  wake_.notify_one();
}

void Publisher::Run() {
  while (true) {
    std::shared_ptr<Publishable> news;
    {
      std::unique_lock lock(mu_);
      wake_.wait(lock, [&] { return stopping_ || first_; });
      if (!first_) return;
      news = std::move(first_->self_);
      first_ = std::exchange(news->next_, nullptr);
      if (!first_) last_ = nullptr;
    }
    news->Publish();
  }
}

}  // namespace sensorium
