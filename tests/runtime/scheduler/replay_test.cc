#include "runtime/scheduler/replay.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/traced_run.h"

namespace sensorium {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

absl::StatusOr<ReplayReport> ReplayFile(const std::string& path) {
  auto reader = TraceReader::Open(path);
  if (!reader.ok()) return reader.status();
  return Replay(**reader);
}

TEST(ReplayTest, ARecordedRunReplaysItemForItem) {
  int64_t preemptions = 0, refusals = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    TemporaryFile file;
    RecordRun(seed, 400, file.path());
    const auto report = ReplayFile(file.path());
    ASSERT_TRUE(report.ok()) << "seed " << seed << ": " << report.status();
    EXPECT_EQ(report->mismatches, 0)
        << "seed " << seed << " line " << report->first_mismatch->line << ": "
        << report->first_mismatch->what << "\n  " << report->first_mismatch->recorded << "\n  "
        << report->first_mismatch->replayed;
    EXPECT_EQ(report->plans, 400);
    EXPECT_GT(report->steps, 100);
    EXPECT_GT(report->admissions, 10);
    EXPECT_LT(report->p99_step_error, 0.12);  // recorded times are up to 10 % off
    EXPECT_GT(report->median_step_error, 0.01);
    preemptions += report->preemptions;
    refusals += report->refusals;
  }
  EXPECT_GT(preemptions, 50);
  EXPECT_GT(refusals, 50);
}

TEST(ReplayTest, AChangedPlanIsNamedWithItsLineAndBothPlans) {
  TemporaryFile file;
  RecordRun(5, 200, file.path());
  std::vector<std::string> lines = absl::StrSplit(file.Read(), '\n');
  size_t at = 100;
  while (lines[at].find(",\"decode\",1]") == std::string::npos) ++at;
  lines[at].replace(lines[at].find(",\"decode\",1]"), 12, ",\"decode\",9]");
  file.Write(absl::StrJoin(lines, "\n"));
  const auto report = ReplayFile(file.path());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->mismatches, 1);
  ASSERT_TRUE(report->first_mismatch.has_value());
  EXPECT_EQ(report->first_mismatch->line, static_cast<int64_t>(at) + 1);
  EXPECT_THAT(report->first_mismatch->what, HasSubstr("plan at "));
  EXPECT_THAT(report->first_mismatch->recorded,
              ContainsRegex("decode 9 of job [0-9]+ .request-[0-9]+."));  // as a person knows it
  EXPECT_THAT(report->first_mismatch->replayed, HasSubstr("decode 1 of job "));
}

TEST(ReplayTest, AnotherPolicyShowsAsMismatches) {
  TemporaryFile file;
  RecordRun(6, 200, file.path());
  std::string text = file.Read();
  const size_t at = text.find("\"max_batch_tokens\":");
  ASSERT_NE(at, std::string::npos);
  text.replace(at, text.find(',', at) - at, "\"max_batch_tokens\":20");
  file.Write(text);
  const auto report = ReplayFile(file.path());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->mismatches, 0);
}

TEST(ReplayTest, WhatNoSchedulerCanHaveDoneIsAnErrorWithItsLine) {
  TemporaryFile file;
  RecordRun(7, 30, file.path());
  const std::string text = file.Read();
  const int64_t lines = std::count(text.begin(), text.end(), '\n');
  const std::pair<const char*, const char*> kLines[] = {
      {"{\"e\":\"remove\",\"job\":4}", "job 4 is not there"},
      {"{\"e\":\"work\",\"job\":4,\"kind\":\"decode\",\"amount\":1,\"context\":0,\"tables\":1,"
       "\"later_units\":0,\"later_tokens\":0}",
       "job 4 is not there"},
      {"{\"e\":\"prices\",\"model\":9,\"prices\":{\"encode_unit_ps\":1,\"forward_ps\":1,"
       "\"prefill_token_ps\":1,\"prefill_context_ps\":1,\"decode_row_ps\":1,"
       "\"decode_context_ps\":1,\"cross_position_ps\":1}}",
       "there is no model 9"},
      {"{\"e\":\"prices\",\"model\":0,\"prices\":{\"encode_unit_ps\":1,\"forward_ps\":1,"
       "\"prefill_token_ps\":1000000000000000,\"prefill_context_ps\":1,\"decode_row_ps\":1,"
       "\"decode_context_ps\":1,\"cross_position_ps\":1}}",
       "a full step would be predicted at"},
  };
  for (const auto& [line, error] : kLines) {
    file.Write(text + line + "\n");
    const auto report = ReplayFile(file.path());
    ASSERT_FALSE(report.ok()) << line;
    EXPECT_THAT(std::string(report.status().message()),
                HasSubstr(absl::StrCat(file.path(), ":", lines + 1, ": ", error)));
  }
  file.Write(text + "{\"e\":\"remove\",\"job\":16777216}\n{\"e\":\"commit\",\"elapsed_us\":1}\n" +
             "{\"e\":\"commit\",\"elapsed_us\":1}\n");
  EXPECT_FALSE(ReplayFile(file.path()).ok());
}

// Bytes flipped, digits changed, lines gone, doubled and swapped: an error or a report, never a
// crash. The sanitizers' builds run it too.
TEST(ReplayTest, NoDamageToATraceCrashesIt) {
  TemporaryFile file;
  int errors = 0;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    RecordRun(seed, 60, file.path());
    const std::string text = file.Read();
    std::mt19937_64 random(seed);
    for (int round = 0; round < 60; ++round) {
      std::vector<std::string> lines = absl::StrSplit(text, '\n');
      for (uint64_t n = 1 + random() % 4; n > 0; --n) {
        const size_t at = random() % (lines.size() - 1);
        std::string& line = lines[at];
        switch (random() % 6) {
          case 0:
            if (!line.empty()) line[random() % line.size()] = static_cast<char>(random());
            break;
          case 1:
            for (char& c : line) {
              if (c >= '0' && c <= '9' && random() % 4 == 0) {
                c = static_cast<char>('0' + random() % 10);
              }
            }
            break;
          case 2:
            if (at > 0) line = lines[1 + random() % (lines.size() - 2)];
            break;
          case 3:
            std::swap(line, lines[random() % (lines.size() - 1)]);
            break;
          case 4: {
            const size_t digit = line.find_first_of("123456789", random() % (line.size() + 1));
            if (digit != std::string::npos) line.insert(digit, "99999");
            break;
          }
          case 5:
            line.resize(random() % (line.size() + 1));
            break;
        }
      }
      file.Write(absl::StrJoin(lines, "\n"));
      const auto report = ReplayFile(file.path());
      if (!report.ok()) {
        ++errors;
        EXPECT_THAT(std::string(report.status().message()), HasSubstr(file.path() + ":"));
      }
    }
  }
  EXPECT_GT(errors, 100);
}

}  // namespace
}  // namespace sensorium
