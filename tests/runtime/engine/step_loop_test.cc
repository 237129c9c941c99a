// What the step loop holds its jobs to, with jobs made for it.
#include "runtime/engine/step_loop.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "tests/runtime/engine/engine_fixture.h"

namespace sensorium {
namespace {

// One that computes nothing: what it does when it is started is the test's.
class IdleJob : public Job {
 public:
  using Act = std::function<void(const JobServices&, BlockTable&)>;
  IdleJob(LoadedModel& model, Act start) : Job(model, {}, Clock::now()), start_(std::move(start)) {
    spec_ = {.model = model.index, .max_context = 64, .feature_slots = 1, .prefill_tokens = 1};
  }
  // Does so while a step of its own is queued.
  void WhileItEncodes(std::function<void()> act) { encode_ = std::move(act); }
  // Its reader is gone when it was asked for so often.
  void CancelledAfter(int looks) { looks_ = looks; }
  const std::string& request_id() const override { return id_; }
  bool Cancelled() const override { return looks_ >= 0 && looks_-- <= 0; }
  void Attach(const JobServices& services) override {
    services_ = services;
    table_.emplace(*services.blocks, 16, 4);
  }
  void Foresee(JobSpec&) const override {}
  void Start() override { start_(services_, *table_); }
  void Preempt() override { table_->Clear(); }
  JobWork Pending() const override {
    return encode_ ? JobWork{.kind = WorkKind::kEncode, .amount = 1} : JobWork{};
  }
  void RunEncode(int32_t, TensorView, Workspace&) override { std::exchange(encode_, nullptr)(); }
  void AddPrefill(int32_t, StepBatch&) override {}
  void AddDecode(StepBatch&) override {}
  void OnForward(std::span<const ChosenToken>, std::vector<BlockCopy>&) override {}
  bool Ended() const override { return ended_; }
  int32_t BlocksHeld() const override { return static_cast<int32_t>(table_->blocks().size()); }
  void End(absl::Status) override {
    table_->Clear();
    ended_ = true;
  }

 private:
  using Clock = JobClock::Clock;
  const std::string id_ = "idle";
  const Act start_;
  std::function<void()> encode_;
  mutable int looks_ = -1;
  JobServices services_;
  std::optional<BlockTable> table_;
  bool ended_ = false;
};

// A loop over one model.
class OneModelLoop {
 public:
  OneModelLoop() {
    config_ = SmallConfig();
    config_.calibrate = false;
    config_.max_batch_tokens = 16;
    auto backend = CpuBackend::Create({.dtype = DType::kFloat32});
    CHECK(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    auto model = LoadedModel::Load(config_.models[0].name, config_.models[0].path, *backend_,
                                   [](size_t, size_t) {});
    CHECK(model.ok()) << model.status();
    models_.push_back(*std::move(model));
    auto loop = StepLoop::Create(config_, {{}}, *backend_, models_);
    CHECK(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    loop_->Start();
  }
  LoadedModel& model() { return *models_[0]; }
  StepLoop& operator*() { return *loop_; }
  StepLoop* operator->() { return loop_.get(); }

 private:
  EngineConfig config_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<LoadedModel>> models_;
  std::unique_ptr<StepLoop> loop_;
};

// Starts one job; until its step is over.
void StartOneJob(const std::function<void(LoadedModel&, const JobServices&, BlockTable&)>& start) {
  OneModelLoop loop;
  auto job =
      std::make_unique<IdleJob>(loop.model(), [&](const JobServices& services, BlockTable& table) {
        start(loop.model(), services, table);
      });
  loop->Submit(std::move(job), 0, nullptr);
  // The numbers of its turn are told once the turn is over.
  while (loop->Stats().requests_running == 0) std::this_thread::yield();
  EXPECT_EQ(loop->Stats().blocks_used, 2);
}

// Taken in behind the plan, and gone before those are admitted who found room meanwhile.
TEST(StepLoopTest, WhoEndedWhileTheDeviceWorkedIsNotStarted) {
  OneModelLoop loop;
  std::atomic<bool> started = false;
  const auto runs = [](const JobServices&, BlockTable&) {};
  auto comes = std::make_unique<IdleJob>(loop.model(),
                                         [&](const JobServices&, BlockTable&) { started = true; });
  comes->CancelledAfter(1);  // asked when it is taken in, and before those who wait are admitted
  auto ticket = std::make_shared<int>();
  const std::weak_ptr<int> gone = ticket;
  auto works = std::make_unique<IdleJob>(loop.model(), runs);
  works->WhileItEncodes([&] { loop->Submit(std::move(comes), 0, std::move(ticket)); });
  loop->Submit(std::move(works), 0, nullptr);
  while (!gone.expired()) std::this_thread::yield();
  EXPECT_FALSE(started);
}

TEST(StepLoopTest, AJobsBlocksAreItsOwn) {
  StartOneJob([](LoadedModel&, const JobServices&, BlockTable& table) { table.Grow(32); });
}

// What each step of each test is held against: engine, scheduler and simulator alike.
TEST(EngineDeathTest, ABlockThatNoJobOwnsIsNoticedInItsStep) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(StartOneJob([](LoadedModel&, const JobServices& services, BlockTable& table) {
                 table.Grow(32);
                 (void)services.blocks->Allocate();
               }),
               "2 vs 3.* KV blocks that jobs hold");
  EXPECT_DEATH(StartOneJob([](LoadedModel&, const JobServices& services, BlockTable& table) {
                 table.Grow(32);
                 services.blocks->AddRef(table.blocks()[0]);
               }),
               "2 vs 3.* KV blocks that jobs hold");
}

TEST(EngineDeathTest, AnImageSlotThatNoJobOwnsIsNoticedInItsStep) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(StartOneJob([](LoadedModel& model, const JobServices&, BlockTable& table) {
                 table.Grow(32);
                 (void)model.feature_cache->Acquire({}, /*holder=*/1);
               }),
               "0 vs 1.* image slots that jobs hold");
}

}  // namespace
}  // namespace sensorium
