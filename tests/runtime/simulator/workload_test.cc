#include "runtime/simulator/workload.h"

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/traced_run.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

TEST(WorkloadTest, DistributionsHaveTheMeansTheySay) {
  SimulationRandom random(1);
  for (const char* text : {"120", "uniform:1:13", "lognormal:200:0.5", "geometric:64"}) {
    const auto d = Distribution::Parse(text);
    ASSERT_TRUE(d.ok()) << d.status();
    double sum = 0;
    for (int i = 0; i < 50'000; ++i) sum += static_cast<double>(d->Draw(random));
    EXPECT_NEAR(sum / 50'000, d->Mean(), 0.02 * d->Mean()) << text;
  }
  const auto cut = Distribution::Parse("lognormal:200:2:300");
  ASSERT_TRUE(cut.ok());
  for (int i = 0; i < 1000; ++i) EXPECT_LE(cut->Draw(random), 300);
}

TEST(WorkloadTest, WhatIsNoDistributionOrMixIsToldSo) {
  for (const char* text : {"", "x", "uniform:3", "uniform:5:1", "geometric", "lognormal:1:99", "-4",
                           "nan", "uniform:1:2:3"}) {
    EXPECT_FALSE(Distribution::Parse(text).ok()) << text;
  }
  for (const char* text : {"", "picture:x", "dance:3", "text:1:2", "text:-1", "text:0"}) {
    EXPECT_FALSE(ParseMix(text).ok()) << text;
  }
  const auto mix = ParseMix("picture:3,speech:1,text:6");
  ASSERT_TRUE(mix.ok());
  EXPECT_EQ(mix->size(), 3u);
}

TEST(WorkloadTest, TheSameSeedDrawsTheSameRequestsAtTheRateAsked) {
  Workload w{.rate = 50, .duration_s = 200, .mix = *ParseMix("picture:3,speech:1,text:6")};
  w.tenants = {{.name = "a", .share = 1}, {.name = "b", .share = 3}};
  for (const bool bursty : {false, true}) {
    w.on_s = bursty ? 0.5 : 0;
    w.off_s = bursty ? 1.5 : 0;
    const auto a = DrawArrivals(w, 7), b = DrawArrivals(w, 7), c = DrawArrivals(w, 8);
    ASSERT_TRUE(a.ok() && b.ok() && c.ok());
    ASSERT_EQ(a->size(), b->size());
    double pictures = 0, second = 0, gaps = 0, squares = 0;
    for (size_t i = 0; i < a->size(); ++i) {
      EXPECT_EQ((*a)[i].time_us, (*b)[i].time_us);
      EXPECT_EQ((*a)[i].output_tokens, (*b)[i].output_tokens);
      pictures += (*a)[i].kind == RequestKind::kPicture;
      second += (*a)[i].tenant;
      if (i == 0) continue;
      const double gap = static_cast<double>((*a)[i].time_us - (*a)[i - 1].time_us);
      EXPECT_GE(gap, 0);
      gaps += gap;
      squares += gap * gap;
    }
    const double n = static_cast<double>(a->size());
    EXPECT_NEAR(n, 10'000, bursty ? 1500 : 300);
    EXPECT_NEAR(pictures / n, 0.3, 0.02);
    EXPECT_NEAR(second / n, 0.75, 0.02);
    // The squared coefficient of variation of the gaps: 1 for Poisson, more for bursts.
    const double variation = squares / n / (gaps / n * gaps / n) - 1;
    if (bursty) {
      EXPECT_GT(variation, 3);
    } else {
      EXPECT_NEAR(variation, 1, 0.1);
    }
  }
  EXPECT_FALSE(DrawArrivals(w, 7, /*most=*/100).ok());
}

TEST(WorkloadTest, TheSamePictureIsAlwaysAsLarge) {
  Workload w{.rate = 50, .duration_s = 20, .mix = *ParseMix("picture,speech")};
  for (RequestMix& mix : w.mix) mix.media = *Distribution::Parse("uniform:1:10");
  const auto arrivals = DrawArrivals(w, 3);
  ASSERT_TRUE(arrivals.ok());
  std::map<std::pair<RequestKind, int64_t>, int64_t> sizes;
  std::set<int32_t> crops;
  for (const Arrival& a : *arrivals) {
    const bool picture = a.kind == RequestKind::kPicture;
    const int64_t size = picture ? a.image_crops : a.audio_ms;
    const auto known = sizes.emplace(std::pair(a.kind, a.media), size).first;
    EXPECT_EQ(known->second, size);
    if (picture) crops.insert(a.image_crops);
  }
  EXPECT_EQ(sizes.size(), 20u);
  EXPECT_GT(crops.size(), 3u);
}

TEST(WorkloadTest, ReadsRequestsFromCsvAndNamesFileAndLineOfWhatIsWrong) {
  TemporaryFile file;
  file.Write(
      "time_ms,tenant,kind,image_crops,audio_ms,media,prompt_tokens,system_tokens,output_tokens,"
      "rows,"
      "priority,deadline_ms\n"
      "# a comment\n"
      "20,red,picture,5,0,77,30,200,40,3,2,900\r\n"
      "10.5,blue,speech,0,12000,,,,60,,,\n");
  Workload w;
  ASSERT_TRUE(ReadArrivalsCsv(file.path(), w).ok());
  ASSERT_EQ(w.arrivals.size(), 2u);
  ASSERT_EQ(w.tenants.size(), 3u);
  const auto sorted = DrawArrivals(w, 1);
  ASSERT_TRUE(sorted.ok());
  EXPECT_EQ((*sorted)[0].time_us, 10'500);
  EXPECT_EQ((*sorted)[0].kind, RequestKind::kSpeech);
  EXPECT_EQ((*sorted)[0].audio_ms, 12'000);
  EXPECT_EQ((*sorted)[0].deadline_us, kNever);
  EXPECT_EQ(w.tenants[(*sorted)[1].tenant].name, "red");
  EXPECT_EQ((*sorted)[0].rows, 1);
  EXPECT_EQ((*sorted)[1].image_crops, 5);
  EXPECT_EQ((*sorted)[1].media, 77);
  EXPECT_EQ((*sorted)[1].system_tokens, 200);
  EXPECT_EQ((*sorted)[1].rows, 3);
  EXPECT_EQ((*sorted)[1].deadline_us, 920'000);
  EXPECT_EQ((*sorted)[1].priority, 2);

  const std::pair<const char*, const char*> kWrong[] = {
      {"", ":0: no requests"},
      {"time_ms\n", ":1: no requests"},
      {"kind\ntext\n", ":1: the header has no column time_ms"},
      {"time_ms,colour\n", ":1: there is no column 'colour'"},
      {"time_ms,kind\n5,text\n5\n", ":3: 1 fields; the header has 2"},
      {"time_ms,kind\n5,dance\n", ":2: 'dance' is no kind of request"},
      {"time_ms\nabc\n", ":2: time_ms is 'abc'"},
      {"time_ms,audio_ms\n5,-1\n", ":2: audio_ms is '-1'; allowed are 0 to"},
  };
  for (const auto& [text, error] : kWrong) {
    file.Write(text);
    Workload wrong;
    const absl::Status status = ReadArrivalsCsv(file.path(), wrong);
    EXPECT_THAT(std::string(status.message()), HasSubstr(file.path() + error)) << text;
  }
}

}  // namespace
}  // namespace sensorium
