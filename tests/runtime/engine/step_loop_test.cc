// What the step loop holds its jobs to, with jobs made for it.
#include "runtime/engine/step_loop.h"

#include <chrono>
#include <functional>
#include <thread>

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
  const std::string& request_id() const override { return id_; }
  bool Cancelled() const override { return false; }
  void Attach(const JobServices& services) override {
    services_ = services;
    table_.emplace(*services.blocks, 16, 4);
  }
  void Foresee(JobSpec&) const override {}
  void Start() override { start_(services_, *table_); }
  void Preempt() override { table_->Clear(); }
  JobWork Pending() const override { return {}; }
  void RunEncode(int32_t, TensorView, Workspace&) override {}
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
  JobServices services_;
  std::optional<BlockTable> table_;
  bool ended_ = false;
};

// A loop over one model, in which one job is started; until its step is over.
void StartOneJob(const std::function<void(LoadedModel&, const JobServices&, BlockTable&)>& start) {
  EngineConfig config = SmallConfig();
  config.calibrate = false;
  config.max_batch_tokens = 16;
  auto backend = CpuBackend::Create({.dtype = DType::kFloat32});
  CHECK(backend.ok()) << backend.status();
  std::vector<std::unique_ptr<LoadedModel>> models;
  auto model = LoadedModel::Load(config.models[0].name, config.models[0].path, **backend,
                                 [](size_t, size_t) {});
  CHECK(model.ok()) << model.status();
  models.push_back(*std::move(model));
  auto loop = StepLoop::Create(config, {{}}, **backend, models);
  CHECK(loop.ok()) << loop.status();
  (*loop)->Start();
  auto job = std::make_unique<IdleJob>(
      *models[0],
      [&](const JobServices& services, BlockTable& table) { start(*models[0], services, table); });
  (*loop)->Submit(std::move(job), 0, nullptr);
  // The numbers of its turn are told once the turn is over.
  while ((*loop)->Stats().requests_running == 0) std::this_thread::yield();
  EXPECT_EQ((*loop)->Stats().blocks_used, 2);
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
