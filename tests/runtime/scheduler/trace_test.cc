#include "runtime/scheduler/trace.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/traced_run.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

TEST(TraceTest, EveryCallReadsBackAsItWasWritten) {
  TemporaryFile file;
  TraceHeader header = RandomHeader(3);
  header.options.tenants[1].max_blocks = 17;
  header.options.tenants[1].known = true;
  header.options.chaos_seed = ~uint64_t{0};
  const JobSpec spec = {.model = 1,
                        .tenant = 2,
                        .priority = -3,
                        .deadline_us = 99,
                        .rows = 4,
                        .max_context = 5,
                        .expected_context = 6,
                        .fixed_blocks = 7,
                        .feature_slots = 8,
                        .encode_units = 9,
                        .prefill_tokens = 10,
                        .decode_tokens = 11,
                        .cross_len = 12};
  const Prices prices = {1, 2, 3, 4, 5, 6, 7};
  StepPlan plan{.items = {{.job = 5, .kind = WorkKind::kDecode, .amount = 2},
                          {.job = 6, .kind = WorkKind::kEncode, .amount = 3, .encoder_slot = 1},
                          {.job = 7, .kind = WorkKind::kPrefill, .amount = 40}},
                .predicted_ns = 123,
                .decode_ns = 45};
  {
    auto writer = TraceWriter::Open(file.path(), header);
    ASSERT_TRUE(writer.ok()) << writer.status();
    TraceWriter& w = **writer;
    w.OnAdd(5, spec, 100, "gen-1");
    w.OnAdd(6, JobSpec{}, 101, "");
    w.OnRefuse(spec, 102, "a \"name\"\n" + std::string(1000, 'x'));
    w.OnAdmit(5, 103);
    w.OnWork(5, {.kind = WorkKind::kPrefill, .amount = 10, .context = 3, .tables = 2});
    w.OnPrices(1, prices);
    w.OnPreempt(6);
    w.OnPlan(plan, 104);
    w.OnCommit(77);
    w.OnRemove(5);
    EXPECT_TRUE(w.Close().ok());
  }
  auto opened = TraceReader::Open(file.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  TraceReader& r = **opened;
  EXPECT_EQ(r.header().num_blocks, header.num_blocks);
  EXPECT_EQ(r.header().options.chaos_seed, header.options.chaos_seed);
  EXPECT_EQ(r.header().options.target_step_us, header.options.target_step_us);
  EXPECT_EQ(r.header().options.optimistic, header.options.optimistic);
  ASSERT_EQ(r.header().options.models.size(), 2u);
  EXPECT_EQ(r.header().options.models[0].block_size, header.options.models[0].block_size);
  EXPECT_EQ(r.header().options.models[1].prices, header.options.models[1].prices);
  ASSERT_EQ(r.header().options.tenants.size(), 3u);
  EXPECT_EQ(r.header().options.tenants[1].max_blocks, 17);
  EXPECT_TRUE(r.header().options.tenants[1].known);
  EXPECT_FALSE(r.header().options.tenants[2].known);
  EXPECT_EQ(r.header().options.tenants[2].max_running, std::numeric_limits<int32_t>::max());

  using Kind = TraceEvent::Kind;
  const auto next = [&](Kind kind) -> TraceEvent {
    const auto event = r.Next();
    EXPECT_TRUE(event.ok()) << event.status();
    if (!event.ok() || *event == nullptr) return {};
    EXPECT_EQ((*event)->kind, kind);
    return **event;
  };
  TraceEvent e = next(Kind::kAdd);
  EXPECT_EQ(e.line, 2);
  EXPECT_EQ(e.job, 5);
  EXPECT_EQ(e.now_us, 100);
  EXPECT_EQ(e.request, "gen-1");
  EXPECT_EQ(e.spec.model, 1);
  EXPECT_EQ(e.spec.priority, -3);
  EXPECT_EQ(e.spec.deadline_us, 99);
  EXPECT_EQ(e.spec.feature_slots, 8);
  EXPECT_EQ(e.spec.cross_len, 12);
  e = next(Kind::kAdd);
  EXPECT_EQ(e.spec.deadline_us, kNever);
  EXPECT_EQ(e.request, "");
  e = next(Kind::kRefuse);
  EXPECT_EQ(e.spec.rows, 4);
  EXPECT_EQ(e.request, "a ?name??" + std::string(119, 'x'));  // 128 bytes of it
  EXPECT_EQ(next(Kind::kAdmit).now_us, 103);
  EXPECT_EQ(next(Kind::kWork).work,
            (JobWork{.kind = WorkKind::kPrefill, .amount = 10, .context = 3, .tables = 2}));
  e = next(Kind::kPrices);
  EXPECT_EQ(e.model, 1);
  EXPECT_EQ(e.prices, prices);
  EXPECT_EQ(next(Kind::kPreempt).job, 6);
  e = next(Kind::kPlan);
  EXPECT_EQ(e.plan.items, plan.items);
  EXPECT_EQ(e.plan.predicted_ns, 123);
  EXPECT_EQ(e.plan.decode_ns, 45);
  EXPECT_EQ(next(Kind::kCommit).elapsed_us, 77);
  EXPECT_EQ(next(Kind::kRemove).job, 5);
  const auto end = r.Next();
  ASSERT_TRUE(end.ok());
  EXPECT_EQ(*end, nullptr);
}

TEST(TraceTest, ARequestIsFoundByTheIdItsClientWasTold) {
  TemporaryFile file;
  const TraceHeader header = RandomHeader(1);
  auto writer = TraceWriter::Open(file.path(), header);
  ASSERT_TRUE(writer.ok()) << writer.status();
  BlockAllocator blocks(header.num_blocks);
  Scheduler scheduler(header.options, blocks, writer->get());
  const absl::StatusOr<JobId> id = scheduler.Add({.max_context = 9}, 5, "gen-41");
  ASSERT_TRUE(id.ok());
  EXPECT_FALSE(scheduler.Add({.max_context = 1 << 30}, 6, "gen-42").ok());
  ASSERT_TRUE((*writer)->Close().ok());
  EXPECT_THAT(file.Read(), HasSubstr(absl::StrCat("\n{\"e\":\"add\",\"job\":", *id,
                                                  ",\"t\":5,\"request\":\"gen-41\",")));
  EXPECT_THAT(file.Read(), HasSubstr("\n{\"e\":\"refuse\",\"t\":6,\"request\":\"gen-42\","));
}

TEST(TraceTest, AFullDiskIsToldOnceByClose) {
  if (access("/dev/full", W_OK) != 0) GTEST_SKIP() << "needs /dev/full";
  const auto writer = TraceWriter::Open("/dev/full", RandomHeader(1));
  ASSERT_FALSE(writer.ok());
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("/dev/full"));
}

TEST(TraceTest, WholeLinesAreInTheFileASecondAfterTheyWereWritten) {
  TemporaryFile file;
  auto writer = TraceWriter::Open(file.path(), RandomHeader(1));
  ASSERT_TRUE(writer.ok());
  (*writer)->OnRemove(1);
  EXPECT_THAT(file.Read(), testing::Not(HasSubstr("remove")));
  (*writer)->OnPlan({}, 1'000'000);
  EXPECT_THAT(file.Read(), HasSubstr("remove"));
  EXPECT_EQ(file.Read().back(), '\n');
}

std::string ErrorOf(const TemporaryFile& file) {
  auto reader = TraceReader::Open(file.path());
  if (!reader.ok()) return std::string(reader.status().message());
  while (true) {
    const auto event = (*reader)->Next();
    if (!event.ok()) return std::string(event.status().message());
    if (*event == nullptr) return "";
  }
}

TEST(TraceTest, GarbageGivesAnErrorThatNamesFileAndLine) {
  TemporaryFile file;
  { ASSERT_TRUE(TraceWriter::Open(file.path(), RandomHeader(1)).ok()); }
  const std::string header = file.Read();
  const std::pair<std::string, const char*> kLines[] = {
      {"garbage\n", ":2: not valid JSON"},
      {"\n", ":2: not valid JSON"},
      {"[1,2]\n", ":2: an object is expected"},
      {"{}\n", ":2: 'e' is missing"},
      {"{\"e\":7}\n", ":2: 'e' must be a text"},
      {"{\"e\":\"dance\"}\n", ":2: 'e' names no event"},
      {"{\"e\":\"remove\"}\n", ":2: 'job' is missing"},
      {"{\"e\":\"remove\",\"job\":1.5}\n", ":2: 'job' must be an integer"},
      {"{\"e\":\"remove\",\"job\":-1}\n", ":2: 'job' is -1; allowed are 1 to "},
      {"{\"e\":\"remove\",\"job\":18446744073709551615}\n", ":2: 'job' is 18446744073709551615"},
      {"{\"e\":\"remove\",\"job\":1}", ":2: the line is cut off"},
      {"{\"e\":\"remove\",\"job\":1}\n{\"e\":\"commit\"}\n", ":3: 'elapsed_us' is missing"},
      {"{\"e\":\"plan\",\"t\":1,\"predicted_ns\":1,\"decode_ns\":1,\"items\":[[1]]}\n",
       ":2: an item of a plan is"},
      {"{\"e\":\"plan\",\"t\":1,\"predicted_ns\":1,\"decode_ns\":1,\"items\":[[1,\"dance\",1]]}\n",
       ":2: a kind of work is"},
      {"{\"e\":\"add\",\"job\":1,\"t\":1,\"spec\":[]}\n", ":2: an object is expected"},
      {"{\"e\":\"refuse\",\"t\":1,\"request\":7}\n", ":2: 'request' must be a text"},
      {std::string(100'000, '[') + "\n", ":2: nested too deep"},
      {std::string("{\"e\":\"remove\",\0\"job\":1}\n", 24), ":2: the line is cut off"},
  };
  for (const auto& [line, error] : kLines) {
    file.Write(header + line);
    EXPECT_THAT(ErrorOf(file), HasSubstr(file.path() + error)) << line.substr(0, 100);
  }
  file.Write("");
  EXPECT_THAT(ErrorOf(file), HasSubstr(":1: the file is empty"));
  file.Write("{\"e\":\"add\"}\n");
  EXPECT_THAT(ErrorOf(file), HasSubstr(":1: a trace begins with"));
  file.Write("{\"e\":\"trace\",\"version\":1}\n");
  EXPECT_THAT(ErrorOf(file), HasSubstr(":1: the trace has version 1; this program reads 4"));
  EXPECT_THAT(std::string(TraceReader::Open("/nowhere/x").status().message()),
              HasSubstr("/nowhere/x"));
  EXPECT_THAT(std::string(TraceReader::Open("/tmp").status().message()), HasSubstr("is no file"));
}

}  // namespace
}  // namespace sensorium
