#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/cli_bench_config.h"
#include "server/cli_bench_report.h"
#include "tests/runtime/scheduler/traced_run.h"
#include "tests/server/run_command.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string ErrorOf(const BenchFlags& flags) {
  return std::string(MakeBenchSetup(flags).status().message());
}

TEST(CliBenchTest, TheCommentedFileSaysWhatTheDefaultsAre) {
  const auto file =
      MakeBenchSetup({.config = std::string(SENSORIUM_SOURCE_DIR) + "/config/bench.yaml"});
  ASSERT_TRUE(file.ok()) << file.status();
  BenchFlags flags{.rate = 5, .duration_s = 60};
  flags.warmup_s = 5;
  const auto built_in = MakeBenchSetup(flags);
  ASSERT_TRUE(built_in.ok()) << built_in.status();
  const auto a = Simulate(file->workload, file->profile, file->options);
  const auto b = Simulate(built_in->workload, built_in->profile, built_in->options);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->report, b->report);
}

TEST(CliBenchTest, FlagsGoBeforeTheFile) {
  TemporaryFile file;
  file.Write(
      "arrivals: {rate: 3, duration_s: 9}\n"
      "mix:\n  - {kind: text, output_tokens: 'geometric:9'}\n"
      "tenants:\n  - {name: a, weight: 500}\n  - {name: b, share: 2}\n"
      "scheduler: {policy: first-come, max_batch_seqs: 5}\n"
      "device: {profile: predicted-a100-molmo-7b-d}\nseed: 12\n");
  auto setup = MakeBenchSetup({.config = file.path()});
  ASSERT_TRUE(setup.ok()) << setup.status();
  EXPECT_EQ(setup->workload.rate, 3);
  EXPECT_EQ(setup->workload.mix.size(), 1u);
  EXPECT_EQ(setup->workload.tenants[0].weight, 500);
  EXPECT_EQ(setup->options.target_step_us, 0);
  EXPECT_EQ(setup->options.seed, 12u);
  EXPECT_TRUE(setup->profile.predicted);

  BenchFlags flags{.config = file.path(), .profile = "cpu-mini", .policy = "budget"};
  flags.rate = 4;
  flags.target_step_us = 7000;
  flags.tenants = "x:1:1000,y:2:3000";
  setup = MakeBenchSetup(flags);
  ASSERT_TRUE(setup.ok()) << setup.status();
  EXPECT_EQ(setup->workload.rate, 4);
  EXPECT_EQ(setup->options.target_step_us, 7000);
  EXPECT_EQ(setup->options.max_batch_seqs, 5);
  EXPECT_EQ(setup->workload.tenants[1].weight, 3000);
  EXPECT_EQ(setup->profile.name, "cpu-mini");
}

TEST(CliBenchTest, NamesTheFlagOrFileAndLineOfWhatIsWrong) {
  TemporaryFile file;
  const std::pair<const char*, const char*> kWrong[] = {
      {"speed: 3\n", ":1: 'speed' is no key; there are arrivals, device, mix"},
      {"seed: 1\narrivals: {rate: fast}\n", ":2: a number from 0 to 1e+06 is expected"},
      {"mix: 3\n", ":1: a list is expected"},
      {"mix:\n  - {kind: dance}\n", ":2: 'dance' is no kind of request"},
      {"mix:\n  - {kind: text, prompt_tokens: x:y}\n", ":2: 'x:y' is no distribution"},
      {"arrivals: [\n", ":2: "},
  };
  for (const auto& [text, error] : kWrong) {
    file.Write(text);
    EXPECT_THAT(ErrorOf({.config = file.path()}), HasSubstr(file.path() + error)) << text;
  }
  EXPECT_THAT(ErrorOf({.config = "/nowhere"}), HasSubstr("/nowhere"));
  EXPECT_THAT(ErrorOf({.profile = "nowhere"}), HasSubstr("there are cpu-mini"));
  EXPECT_THAT(ErrorOf({.mix = "dance:1"}), HasSubstr("dance"));
  EXPECT_THAT(ErrorOf({.policy = "luck"}), HasSubstr("budget and first-come"));
  EXPECT_THAT(ErrorOf({.tenants = "a:b"}), HasSubstr("--tenants"));
  BenchFlags both{.policy = "first-come"};
  both.target_step_us = 5;
  EXPECT_THAT(ErrorOf(both), HasSubstr("--target-step-us"));
}

TEST(CliBenchTest, ReportsReadAsTextJsonAndAPage) {
  BenchFlags flags{.rate = 6, .duration_s = 20};
  flags.tenants = "<b>:1:1000,other:1:2000";
  TemporaryFile file;
  file.Write("mix:\n  - {kind: picture, media: 'uniform:1:9'}\n  - {kind: text}\n");
  flags.config = file.path();
  const auto setup = MakeBenchSetup(flags);
  ASSERT_TRUE(setup.ok()) << setup.status();
  const auto run = Simulate(setup->workload, setup->profile, setup->options);
  ASSERT_TRUE(run.ok()) << run.status();

  EXPECT_THAT(SimulationText(*setup, *run),
              AllOf(StartsWith("device cpu-mini; policy budget, 20000 us a step; seed 1\n"),
                    HasSubstr(" requests/s, "), HasSubstr("FIRST TOKEN"),
                    ContainsRegex("; device [0-9.]+ % busy; "),
                    ContainsRegex("; fairness 0\\.[0-9]+ .Jain, device time over weight"),
                    HasSubstr("QUEUEING p50/p90/p99"),
                    ContainsRegex("found in the caches: [0-9.]+ % of the prompts' tokens, "
                                  "[0-9.]+ % of the pictures, - of the audio windows; "),
                    HasSubstr("\npicture "), HasSubstr("tenant other, weight 2000")));

  const nlohmann::json json = nlohmann::json::parse(SimulationJson(*setup, *run));
  EXPECT_EQ(json["total"]["arrived"], run->report.total.arrived);
  EXPECT_EQ(json["total"]["inter_token"]["p99_us"], run->report.total.inter_token.QuantileUs(0.99));
  const LatencyHistogram& queueing = run->report.total.queueing;
  EXPECT_EQ(json["total"]["queueing"]["count"], queueing.count());
  EXPECT_EQ(json["total"]["queueing"]["p99_us"], queueing.QuantileUs(0.99));
  EXPECT_GT(queueing.QuantileUs(0.99), 0);
  EXPECT_EQ(json["fairness"], run->report.fairness);
  EXPECT_GT(run->report.fairness, 0.5);  // of two tenants: 1 / 2 if one had it all
  EXPECT_LT(run->report.fairness, 1);
  EXPECT_EQ(json["utilisation"], run->report.utilisation);
  EXPECT_GT(run->report.utilisation, 0.1);
  EXPECT_LE(run->report.utilisation, 1);
  EXPECT_GT(json["total"]["cache"]["cached_pictures"], 10);
  EXPECT_EQ(json["total"]["cache"]["pictures"], run->report.total.cache.pictures);
  EXPECT_EQ(json["tenants"].size(), 2u);
  EXPECT_EQ(json["tenants"][0]["name"], "<b>");
  EXPECT_GT(json["moments"].size(), 100u);

  const std::string html = SimulationHtml(*setup, *run);
  EXPECT_THAT(html, AllOf(StartsWith("<!doctype html>"), HasSubstr("share of tokens"),
                          HasSubstr("milliseconds from arrival to the first token"),
                          HasSubstr("seconds since the start"), HasSubstr("percent of the time"),
                          HasSubstr("stated bound"), HasSubstr("&lt;b&gt;"), Not(HasSubstr("<b>")),
                          Not(HasSubstr("http://")), Not(HasSubstr("https://")),
                          Not(HasSubstr("nan,")), Not(HasSubstr("inf,")), Not(HasSubstr(">-0<"))));
}

TEST(CliBenchTest, ACsvsRequestsAreThoseThatTheCommandRuns) {
  TemporaryFile csv;
  csv.Write(
      "time_ms,tenant,kind,image_crops,prompt_tokens,output_tokens\n"
      "0,a,text,0,10,3\n5,b,picture,2,20,4\n5,a,text,0,30,5\n900,b,text,0,7,1\n");
  const Outcome outcome = RunCommand({"bench", "simulate", "--csv", csv.path(), "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["total"]["arrived"], 4);
  EXPECT_EQ(json["total"]["completed"], 4);
  ASSERT_EQ(json["kinds"].size(), 2u);
  ASSERT_EQ(json["tenants"].size(), 2u);
  EXPECT_EQ(json["tenants"][1]["name"], "b");
  EXPECT_EQ(json["tenants"][1]["arrived"], 2);
  const Outcome none = RunCommand({"bench", "simulate", "--csv", "/nowhere.csv"});
  EXPECT_NE(none.exit_code, 0);
  EXPECT_THAT(none.err, HasSubstr("/nowhere.csv"));
}

// The same rate on average, and more of a wait.
TEST(CliBenchTest, BurstsAreASettingOfTheCommandsFile) {
  TemporaryFile file;
  const auto queueing = [&](const std::string& bursts) {
    file.Write("arrivals: {rate: 3, duration_s: 200" + bursts + "}\nmix:\n  - {kind: text}\n");
    const Outcome outcome =
        RunCommand({"bench", "simulate", "--config", file.path(), "--max-batch-seqs", "4",
                    "--max-waiting", "4000", "--json"});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    const nlohmann::json json = nlohmann::json::parse(outcome.out);
    EXPECT_EQ(json["total"]["completed"], json["total"]["arrived"]);
    EXPECT_NEAR(json["total"]["arrived"].get<double>(), 600, 250);
    return json["total"]["queueing"]["p99_us"].get<double>();
  };
  const double steady = queueing("");
  EXPECT_GT(queueing(", on_s: 4, off_s: 12"), 2 * steady);
}

TEST(CliBenchTest, AProfileThatNobodyMeasuredSaysSo) {
  BenchFlags flags{.profile = "predicted-a100-molmo-7b-d", .rate = 1, .duration_s = 2};
  const auto setup = MakeBenchSetup(flags);
  ASSERT_TRUE(setup.ok()) << setup.status();
  const auto run = Simulate(setup->workload, setup->profile, setup->options);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_THAT(SimulationText(*setup, *run), HasSubstr("never measured"));
  EXPECT_THAT(SimulationHtml(*setup, *run), HasSubstr("never measured"));
  const nlohmann::json json = nlohmann::json::parse(SimulationJson(*setup, *run));
  EXPECT_EQ(json["predicted_profile"], true);
  EXPECT_THAT(std::string(json["profile_source"]), HasSubstr("never measured"));
}

TEST(CliBenchTest, AReplaySaysThatAllWasReproducedOrWhatWasNot) {
  ReplayReport report{.jobs = 3, .plans = 40, .steps = 39};
  EXPECT_THAT(ReplayText(report), AllOf(StartsWith("40 plans, 39 of them carried out"),
                                        HasSubstr("every decision was reproduced\n")));
  report.mismatches = 2;
  report.first_mismatch = {.line = 17, .what = "plan at 9 us", .recorded = "A", .replayed = "B"};
  EXPECT_THAT(ReplayText(report),
              HasSubstr("2 decisions differ, the first in line 17: plan at 9 us\n"
                        "  recorded: A\n  replayed: B\n"));
  const nlohmann::json json = nlohmann::json::parse(ReplayJson(report));
  EXPECT_EQ(json["mismatches"], 2);
  EXPECT_EQ(json["first_mismatch"]["line"], 17);
}

}  // namespace
}  // namespace sensorium
