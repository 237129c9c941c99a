// What a simulation finds in the caches, and requests of several rows.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/replay.h"
#include "runtime/simulator/simulator.h"
#include "tests/runtime/scheduler/traced_run.h"

namespace sensorium {
namespace {

// A crop or a window's stage takes 10 ms, a prompt token 1 ms, a row's token 1 ms, a pass nothing.
DeviceProfile Plain() {
  const Prices prices = {.encode_unit_ps = 10'000'000'000,
                         .prefill_token_ps = 1'000'000'000,
                         .decode_row_ps = 1'000'000'000};
  return {.name = "plain",
          .kv_blocks = 2000,
          .vision = {.prices = prices, .crop_tokens = 32},
          .speech = {.prices = prices,
                     .window_ms = 1000,
                     .window_stages = 4,
                     .cross_positions = 160,
                     .prompt_tokens = 4}};
}

SimulationReport Simulated(const std::vector<Arrival>& arrivals, const SimulationOptions& o = {}) {
  Workload w{.arrivals = arrivals};
  w.tenants = {{.name = "a"}, {.name = "b"}};
  for (const Arrival& a : arrivals) {
    w.duration_s = std::max(w.duration_s, static_cast<double>(a.time_us + 1) / 1e6);
  }
  const auto run = Simulate(w, Plain(), o);
  EXPECT_TRUE(run.ok()) << run.status();
  return run.ok() ? run->report : SimulationReport{};
}

int64_t DeviceMs(const SimulationReport& r) {
  double seconds = 0;
  for (const TenantReport& tenant : r.tenants) seconds += tenant.device_s;
  return std::llround(seconds * 1000);
}

constexpr int64_t kLater = 10'000'000;  // when the one before has its answer
constexpr Arrival kPicture{.kind = RequestKind::kPicture,
                           .image_crops = 3,
                           .media = 7,
                           .prompt_tokens = 10,
                           .output_tokens = 5};

Arrival At(int64_t time_us, Arrival a) {
  a.time_us = time_us;
  return a;
}

TEST(SimulatorCacheTest, ASystemPromptIsComputedOnceForEachTenant) {
  const Arrival text{.prompt_tokens = 20, .system_tokens = 100, .output_tokens = 3};
  Arrival other = text;
  other.tenant = 1;
  const std::vector<Arrival> arrivals = {text, At(kLater, text), At(2 * kLater, other),
                                         At(3 * kLater, text)};
  const SimulationReport r = Simulated(arrivals);
  EXPECT_EQ(r.total.cache.prompt_tokens, 4 * 120);
  EXPECT_EQ(r.total.cache.cached_tokens, 2 * 96);  // six blocks of 16
  EXPECT_EQ(r.tenants[0].cache.cached_tokens, 2 * 96);
  EXPECT_EQ(r.tenants[1].cache.cached_tokens, 0);
  EXPECT_EQ(Simulated(arrivals, {.prefix_cache = false}).total.cache.cached_tokens, 0);
  // It is time that is saved: 24 tokens and 2 more rows instead of 120.
  const SimulationReport twice = Simulated({text, At(kLater, text)});
  EXPECT_EQ(twice.total.first_token.max_us(), 120'000);
  EXPECT_EQ(twice.total.first_token.mean_us(), (120'000 + 24'000) / 2);
}

TEST(SimulatorCacheTest, AQuestionAboutAPictureThatWasAskedAboutStartsBehindIt) {
  const SimulationReport r = Simulated({kPicture, At(kLater, kPicture)});
  EXPECT_EQ(r.total.cache.pictures, 2);
  EXPECT_EQ(r.total.cache.cached_pictures, 1);
  EXPECT_EQ(r.total.cache.cached_tokens, 96);  // 3 crops of 32
  EXPECT_EQ(r.total.first_token.max_us(), 3 * 10'000 + 106'000);
  EXPECT_EQ(r.total.first_token.mean_us(), (136'000 + 10'000) / 2);
}

TEST(SimulatorCacheTest, AnotherPictureOrAnotherTenantsIsNotTheSame) {
  Arrival other = kPicture, of_other = kPicture, fresh = kPicture;
  other.media = 8;
  of_other.tenant = 1;
  fresh.media = 0;  // always a new one
  const SimulationReport r = Simulated({kPicture, At(kLater, other), At(2 * kLater, of_other),
                                        At(3 * kLater, fresh), At(4 * kLater, fresh)});
  EXPECT_EQ(r.total.cache.pictures, 5);
  EXPECT_EQ(r.total.cache.cached_pictures, 0);
  EXPECT_EQ(r.total.cache.cached_tokens, 0);
}

TEST(SimulatorCacheTest, APictureThatTwoAskAboutAtOnceIsEncodedOnce) {
  const SimulationReport r = Simulated({kPicture, kPicture});
  EXPECT_EQ(r.total.completed, 2);
  EXPECT_EQ(r.total.cache.cached_pictures, 1);
  // 3 crops; twice the prompt, since neither had computed it when the other began; 4 tokens each.
  EXPECT_EQ(DeviceMs(r), 30 + 2 * 106 + 2 * 4);
}

TEST(SimulatorCacheTest, WhoWaitsForAPictureEncodesItWhenTheOtherIsGone) {
  Arrival patient = kPicture;
  patient.image_crops = 9;
  Arrival hurried = patient;
  hurried.deadline_us = 35'000;
  // The scheduler takes the device for a faster one, so it does not refuse what cannot be done.
  const SimulationReport r = Simulated({hurried, patient}, {.price_error = 0.01});
  EXPECT_EQ(r.total.expired, 1);
  EXPECT_EQ(r.total.completed, 1);
  // The first four crops were the other's, and are lost.
  EXPECT_EQ(r.total.end_to_end.max_us(), 40'000 + 90'000 + (9 * 32 + 10) * 1000 + 4 * 1000);
}

TEST(SimulatorCacheTest, ARecordingThatWasHeardIsNotEncodedAgain) {
  const Arrival speech{
      .kind = RequestKind::kSpeech, .audio_ms = 3000, .media = 4, .output_tokens = 30};
  const SimulationReport r = Simulated({speech, At(kLater, speech)});
  EXPECT_EQ(r.total.cache.windows, 6);
  EXPECT_EQ(r.total.cache.cached_windows, 3);
  const SimulationReport without =
      Simulated({speech, At(kLater, speech)}, {.encoder_cache_share = 0});
  EXPECT_EQ(without.total.cache.cached_windows, 0);
  EXPECT_EQ(without.total.end_to_end.max_us() * 2 - 3 * 40'000,
            std::llround(r.total.end_to_end.mean_us() * 2));
}

TEST(SimulatorCacheTest, AnswersShareTheirPromptAndDecodeTogether) {
  const Arrival four{.prompt_tokens = 40, .output_tokens = 6, .rows = 4};
  const SimulationReport r = Simulated({four});
  EXPECT_EQ(r.total.output_tokens, 4 * 6);
  EXPECT_EQ(r.total.first_token.max_us(), 40'000);
  EXPECT_EQ(r.total.end_to_end.max_us(), 40'000 + 5 * 4 * 1000);
  EXPECT_EQ(r.total.inter_token.QuantileUs(0.5), 4000);
}

TEST(SimulatorCacheTest, RowsAreAdmittedAndRefusedAsRows) {
  const Arrival three{.prompt_tokens = 10, .output_tokens = 4, .rows = 3};
  Arrival five = three;
  five.rows = 5;
  const SimulationReport r = Simulated({three, three, five}, {.max_batch_seqs = 4});
  EXPECT_EQ(r.total.completed, 2);
  EXPECT_EQ(r.total.refused, 1);
  // One after the other: 10 ms and three times 3 ms.
  EXPECT_EQ(r.total.queueing.max_us(), 19'000);
}

TEST(SimulatorCacheTest, BeamsComeToOneText) {
  const Arrival beams{
      .kind = RequestKind::kSpeech, .audio_ms = 2000, .output_tokens = 20, .rows = 5};
  const SimulationReport r = Simulated({beams});
  EXPECT_EQ(r.total.output_tokens, 20);
  EXPECT_EQ(r.total.end_to_end.max_us(), 2 * (40'000 + 4'000 + 9 * 5 * 1000));
}

TEST(SimulatorCacheTest, CachesAndRowsGoThroughPreemptionAndTheTraceReplays) {
  TemporaryFile file;
  Workload w{.rate = 60, .duration_s = 20, .mix = *ParseMix("picture:3,speech:2,text:5")};
  w.mix[0].media = *Distribution::Parse("geometric:3");
  w.mix[1].media = *Distribution::Parse("geometric:5");
  w.mix[1].rows = *Distribution::Parse("uniform:1:3");
  w.mix[2].rows = *Distribution::Parse("uniform:1:4");
  w.mix[2].system_tokens = *Distribution::Parse("100");
  w.mix[0].deadline_ms = 20'000;
  DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  profile.kv_blocks = 400;
  profile.vision.feature_slots = 3;
  SimulationOptions o{.target_step_us = 20'000, .optimistic = true};
  auto writer = TraceWriter::Open(file.path(), {.options = SimulatedSchedulerOptions(w, profile, o),
                                                .num_blocks = profile.kv_blocks});
  ASSERT_TRUE(writer.ok()) << writer.status();
  o.listener = writer->get();
  const auto run = Simulate(w, profile, o);  // which checks that everything came back
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE((*writer)->Close().ok());
  const SimulationReport& r = run->report;
  EXPECT_GT(r.preemptions, 10);
  EXPECT_GT(r.total.cache.cached_pictures, 10);
  EXPECT_GT(r.total.cache.cached_windows, 0);
  EXPECT_GT(r.total.cache.cached_tokens, 1000);
  EXPECT_GT(r.evicted_blocks, 100);
  EXPECT_EQ(r.total.arrived, r.total.completed + r.total.refused + r.total.expired);
  auto reader = TraceReader::Open(file.path());
  ASSERT_TRUE(reader.ok()) << reader.status();
  const auto replayed = Replay(**reader);
  ASSERT_TRUE(replayed.ok()) << replayed.status();
  EXPECT_EQ(replayed->mismatches, 0);
  EXPECT_EQ(replayed->preemptions, r.preemptions);
}

}  // namespace
}  // namespace sensorium
