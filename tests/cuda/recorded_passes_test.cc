// Passes recorded as CUDA graphs and replayed, on the emulated device: the same bits as plain
// launches, whatever the batch; and what differs from the recording is noticed and run plainly.
// Executed by emulation.
#include "cuda/recorded_passes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/cuda_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/runtime/models/model_runner.h"
#include "tests/sanitized.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

constexpr DType kF32 = DType::kFloat32;
const std::string kBundled = SENSORIUM_MODELS "/", kGolden = SENSORIUM_TEST_DATA "/";

// What is logged while it lives.
class Log {
 public:
  Log() : kept_(spdlog::default_logger()) {
    auto logger = std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_st>(text_));
    logger->set_pattern("%l %v");
    spdlog::set_default_logger(logger);
  }
  ~Log() { spdlog::set_default_logger(kept_); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> kept_;
};

int64_t GraphLaunches() { return cuda_emu::counters().graph_launches; }

// ---- Whole models
// ------------------------------------------------------------------------------------

// Sequences of one model whose cached keys and values are random numbers.
class Decodes {
 public:
  Decodes(const std::string& dir, DType dtype, int32_t max_rows) : runner_(dir, dtype) {
    Backend& be = runner_.backend();
    LoadedModel& m = runner_.model();
    const KvCacheView& kv = m.self_kv;
    std::vector<float> values(kv.block_stride_bytes / SizeOf(dtype));
    std::normal_distribution<float> normal;
    for (int32_t b = 0; b < kv.num_blocks; ++b) {
      for (float& v : values) v = normal(rng_);
      be.CopyFromHost(
          {kv.arena + b * kv.block_stride_bytes, dtype, {1, static_cast<int64_t>(values.size())}},
          values);
    }
    for (int32_t i = 0; i < max_rows + 1; ++i) {
      tables_.push_back(runner_.NewTable());
      tables_.back().Grow(1);
    }
    if (m.is_whisper()) {
      cross_.emplace(runner_.NewTable());
      cross_->Grow(m.whisper->config().audio_positions);
    }
    RecordDecodes(be, m, max_rows, m.max_positions(), tables_[0], cross_ ? &*cross_ : nullptr,
                  runner_.pass_memory());
  }

  ModelRunner& runner() { return runner_; }
  std::mt19937& rng() { return rng_; }

  // Logits of the next token of sequences with such contexts, the token itself among them. Replayed
  // where a shape fits and `replay`.
  std::vector<float> Run(const std::vector<int32_t>& contexts, const std::vector<int32_t>& tokens,
                         bool replay) {
    LoadedModel& m = runner_.model();
    const std::vector<DecodeShape> shapes = m.decode_shapes;
    if (!replay) m.decode_shapes.clear();
    StepBatch batch;
    const int32_t wanted = 0;
    for (size_t i = 0; i < contexts.size(); ++i) {
      tables_[i].Grow(contexts[i]);
      batch.Add({.tokens = std::span(&tokens[i], 1),
                 .first_position = contexts[i] - 1,
                 .self = &tables_[i],
                 .cross = cross_ ? &*cross_ : nullptr,
                 .cross_len = cross_ ? m.whisper->config().audio_positions : 0,
                 .wanted = std::span(&wanted, 1),
                 .features = {},
                 .feature_rows = {},
                 .feature_offsets = {}});
    }
    std::vector<float> logits = runner_.Forward(batch);
    m.decode_shapes = shapes;
    return logits;
  }

 private:
  ModelRunner runner_;
  std::mt19937 rng_{7};
  std::vector<BlockTable> tables_;
  std::optional<BlockTable> cross_;
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Many batches, their rows between two shapes, their contexts on both sides of the ends of blocks
// and of attention's pieces.
class ReplayedDecodesTest : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(ReplayedDecodesTest, GiveTheBitsOfPlainLaunches) {
  const auto& [dir, dtype] = GetParam();
  Decodes decodes(dir, dtype, /*max_rows=*/6);
  LoadedModel& m = decodes.runner().model();
  const int32_t most = m.max_positions();
  EXPECT_LE(most, 4096);
  // 1, 2, 4 and 6 rows; contexts of 512, 2048 and the most.
  EXPECT_EQ(m.decode_shapes.size(), 4u * (1 + (most > 512) + (most > 2048)));
  std::vector<int32_t> ends = {1, 16, 17, 511, 512, 513, 1024, 1025, 2048};
  const int32_t longest = kForRaces ? std::min(most, 513) : most;
  std::erase_if(ends, [&](int32_t end) { return end > longest; });
  Log log;
  const int64_t before = GraphLaunches();
  constexpr int kBatches = kForRaces ? 2 : kSanitized ? 4 : 12;
  for (int i = 0; i < kBatches; ++i) {
    const auto rows = 1 + decodes.rng()() % 6;
    std::vector<int32_t> contexts, tokens;
    for (size_t r = 0; r < rows; ++r) {
      // Two long ones: the runner has 400 blocks.
      const size_t known = r < 2 ? ends.size() : std::min<size_t>(6, ends.size());
      contexts.push_back(ends[decodes.rng()() % known]);
      tokens.push_back(static_cast<int32_t>(decodes.rng()() % m.vocab_size()));
    }
    SCOPED_TRACE(testing::PrintToString(contexts));
    cuda_emu::SetSeed(i + 1);
    const std::vector<float> plain = decodes.Run(contexts, tokens, /*replay=*/false);
    ASSERT_EQ(GraphLaunches(), before + i);
    const std::vector<float> replayed = decodes.Run(contexts, tokens, /*replay=*/true);
    ASSERT_EQ(GraphLaunches(), before + i + 1);
    EXPECT_TRUE(SameBits(plain, replayed));
    EXPECT_EQ(std::count_if(plain.begin(), plain.end(), [](float v) { return v != v; }), 0);
  }
  EXPECT_EQ(log.text(), "");
  cuda_emu::SetSeed(0);
}

INSTANTIATE_TEST_SUITE_P(
    Models, ReplayedDecodesTest,
    testing::Combine(testing::Values(kBundled + "molmo-mini", kBundled + "whisper-mini",
                                     kGolden + "molmo-moe", kGolden + "molmo-postnorm"),
                     testing::ValuesIn(kForRaces ? std::vector{DType::kBFloat16}
                                                 : std::vector{kF32, DType::kBFloat16})),
    [](const auto& info) {
      std::string name = std::get<0>(info.param);
      name = name.substr(name.rfind('/') + 1);
      name[name.find('-')] = '_';
      return name + "_" + std::string(Name(std::get<1>(info.param)));
    });

TEST(RecordedPassesTest, OtherBatchesAreNotFilledUp) {
  Decodes decodes(kBundled + "whisper-mini", kF32, 2);
  const int64_t before = GraphLaunches();
  decodes.Run({5, 9, 3}, {1, 2, 3}, true);  // more rows than any shape has
  EXPECT_EQ(GraphLaunches(), before);
  decodes.Run({5, 9}, {1, 2}, true);
  EXPECT_EQ(GraphLaunches(), before + 1);
}

// ---- A pass of two ops
// -------------------------------------------------------------------------------

class RecordedPassTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 3, kColumns = 8;
  void Open(CudaBackendOptions options = {}) {
    auto backend = CudaBackend::Create(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    be_ = *std::move(backend);
    for (auto& array : arrays_) array = *be_->Allocate(kRows * kColumns * sizeof(float));
    std::vector<float> x(kRows * kColumns);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i / kColumns);  // its row
    be_->CopyFromHost(View(0), x);
  }
  void TearDown() override {
    for (auto& array : arrays_) array.reset();
    be_.reset();
    cuda_emu::FailLaunch(0);
    cuda_emu::RefuseLaunch(0);
    EXPECT_EQ(cuda_emu::LiveGraphs(), 0);
    EXPECT_EQ(cuda_emu::AllocatedBytes(), 0u);
  }
  TensorView View(int i) { return {arrays_[i]->data(), kF32, {kRows, kColumns}}; }
  // Row r of array `to` becomes from[r] + r.
  void Ops(std::span<const int32_t> from, int to) {
    be_->GatherRows(View(to), View(0), from);
    be_->ScatterAddRows(View(to), View(0), order_);
  }
  bool Record(std::span<const int32_t> from, int to = 1) {
    return be_->RecordPass(kKey, [&] { Ops(from, to); });
  }
  void Pass(std::span<const int32_t> from, int to = 1) {
    be_->Pass(kKey, [&] { Ops(from, to); });
  }
  // A value of each row of array i; its columns are equal.
  std::vector<float> Read(int i) {
    std::vector<float> y(kRows * kColumns);
    be_->CopyToHost(y, View(i));
    return {y[0], y[kColumns], y[2 * kColumns]};
  }
  const PassKey kKey = {.model = this, .rows = 3, .context = 1};
  const std::vector<int32_t> order_ = {0, 1, 2}, kFirst = {2, 2, 0}, kSecond = {1, 0, 1};

  std::unique_ptr<Backend> be_;
  std::array<std::unique_ptr<DeviceBuffer>, 3> arrays_;
};

using Values = std::vector<float>;

TEST_F(RecordedPassTest, IsReplayedWithTheArraysOfItsOwnTime) {
  Open();
  ASSERT_TRUE(Record(kFirst));
  EXPECT_TRUE(std::isnan(Read(1)[0])) << "recording ran it";
  const cuda_emu::Counters before = cuda_emu::counters();
  Pass(kSecond);
  const cuda_emu::Counters after = cuda_emu::counters();
  EXPECT_EQ(Read(1), (Values{1, 1, 3}));
  EXPECT_EQ(after.graph_launches - before.graph_launches, 1);
  EXPECT_EQ(after.launches, before.launches);
  EXPECT_EQ(after.copies_to_device - before.copies_to_device, 1);
  // An array that happens to hold what another one holds has a place of its own all the same.
  Pass(std::vector<int32_t>(order_));
  EXPECT_EQ(Read(1), (Values{0, 2, 4}));
  EXPECT_EQ(GraphLaunches() - before.graph_launches, 2);
}

TEST_F(RecordedPassTest, TwoReplaysInARowDoNotMixTheirArrays) {
  Open();
  ASSERT_TRUE(Record(kFirst));
  Pass(kFirst);
  be_->Copy(View(2), View(1));
  const int64_t waits = cuda_emu::counters().synchronisations;
  Pass(kSecond);  // overwrites what the first may not have read yet: waits for it
  EXPECT_EQ(cuda_emu::counters().synchronisations, waits + 1);
  EXPECT_EQ(Read(2), (Values{2, 3, 2}));
  EXPECT_EQ(Read(1), (Values{1, 1, 3}));
  Pass(kFirst);  // waited for already
  EXPECT_EQ(cuda_emu::counters().synchronisations, waits + 3);
}

// Where a difference lies: in an argument, in the size of an array, in what calls there are.
TEST_F(RecordedPassTest, ADifferenceIsNoticedAndRunPlainly) {
  Open();
  ASSERT_TRUE(Record(kFirst));
  const int64_t before = GraphLaunches();
  Log log;
  Pass(kSecond, /*to=*/2);
  EXPECT_EQ(Read(2), (Values{1, 1, 3}));
  EXPECT_TRUE(std::isnan(Read(1)[0])) << "the recorded pass ran, too";
  EXPECT_THAT(log.text(), HasSubstr("warning a pass of 3 rows up to a context of 1 is not the "
                                    "recorded one: GatherRows\n"));
  const std::string told = log.text();
  be_->Pass(kKey, [&] { be_->GatherRows(View(1), View(0), kFirst); });  // ends before
  EXPECT_EQ(Read(1), (Values{2, 2, 0}));
  be_->Pass(kKey, [&] {
    Ops(kFirst, 1);
    be_->Copy(View(2), View(0));  // goes on behind
  });
  EXPECT_EQ(Read(1), (Values{2, 3, 2}));
  EXPECT_EQ(Read(2), (Values{0, 1, 2}));
  be_->Pass(kKey, [&] {  // other ops
    be_->ScatterAddRows(View(1), View(0), order_);
    be_->GatherRows(View(2), View(0), kFirst);
  });
  EXPECT_EQ(Read(1), (Values{2, 4, 4}));
  EXPECT_EQ(Read(2), (Values{2, 2, 0}));
  EXPECT_EQ(log.text(), told) << "once is enough";
  EXPECT_EQ(GraphLaunches(), before);
  Pass(kSecond);  // and the recording is still good
  EXPECT_EQ(Read(1), (Values{1, 1, 3}));
  EXPECT_EQ(GraphLaunches(), before + 1);
}

TEST_F(RecordedPassTest, AnotherKeyIsRunPlainly) {
  Open();
  ASSERT_TRUE(Record(kFirst));
  const int64_t before = GraphLaunches();
  be_->Pass({.model = this, .rows = 3, .context = 2}, [&] { Ops(kSecond, 1); });
  EXPECT_EQ(Read(1), (Values{1, 1, 3}));
  EXPECT_EQ(GraphLaunches(), before);
}

TEST_F(RecordedPassTest, APassWithoutRoomForItsArraysIsNotRecordedAndSaysSo) {
  Log log;
  Open({.graph_upload_bytes = 256});
  EXPECT_FALSE(Record(kFirst));
  EXPECT_EQ(log.text(),
            "warning a pass of 3 rows up to a context of 1 is not recorded: there is no room for "
            "its arrays\n");
  Pass(kSecond);
  EXPECT_EQ(Read(1), (Values{1, 1, 3}));
  EXPECT_EQ(cuda_emu::LiveGraphs(), 0);
}

// Partial results of the longest contexts of a pass must fit scratch at once, or what is launched
// would hang on how long the contexts are.
TEST_F(RecordedPassTest, AnAttentionThatScratchMayNotHoldIsNotRecordedAndSaysSo) {
  Open({.scratch_bytes = 4096});
  const KvLayout layout = {.layers = 1, .kv_heads = 1, .head_dim = 64, .block_size = 16};
  const auto arena = *be_->Allocate(be_->KvBlockBytes(layout));
  const auto rows = *be_->Allocate(2 * 64 * sizeof(float));
  const KvCacheView kv = {arena->data(), be_->KvBlockBytes(layout), 1, layout};
  const TensorView q(rows->data(), kF32, {1, 1, 64});
  const TensorView y(rows->data() + 64 * sizeof(float), kF32, {1, 1, 64});
  std::vector<float> ones(64, 1.f);
  be_->CopyFromHost(q.Reshape({1, 64}), ones);
  const std::vector<int32_t> query_start = {0, 1}, context_len = {1};
  const std::vector<int64_t> slots = {0};
  const auto ops = [&](int32_t max_blocks, const std::vector<BlockId>& tables) {
    be_->StoreKv(kv, 0, q, q, slots);
    be_->PagedAttention(y, q, kv, 0,
                        {.query_start = query_start,
                         .context_len = context_len,
                         .block_tables = tables,
                         .max_blocks = max_blocks},
                        0.125f, /*causal=*/true);
  };
  std::vector<BlockId> tables(2048, -1);
  tables[0] = 0;
  Log log;
  EXPECT_FALSE(be_->RecordPass(kKey, [&] { ops(2048, tables); }));
  EXPECT_THAT(log.text(), HasSubstr("is not recorded: its attention may need several pieces"));
  be_->Pass(kKey, [&] { ops(2048, tables); });
  std::vector<float> got(64);
  be_->CopyToHost(got, y.Reshape({1, 64}));
  EXPECT_EQ(got, ones);
  EXPECT_TRUE(be_->RecordPass(kKey, [&] { ops(64, tables); })) << "1024 keys: two pieces";
}

TEST_F(RecordedPassTest, WithoutGraphsEverythingIsPlain) {
  for (const CudaBackendOptions& options :
       {CudaBackendOptions{.graphs = false}, CudaBackendOptions{.wait_after_each_op = true}}) {
    Open(options);
    EXPECT_FALSE(be_->replays_passes());
    EXPECT_FALSE(Record(kFirst));
    const int64_t before = GraphLaunches();
    Pass(kSecond);
    EXPECT_EQ(Read(1), (Values{1, 1, 3}));
    EXPECT_EQ(GraphLaunches(), before);
    for (auto& array : arrays_) array.reset();
  }
}

std::string ErrorOf(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

TEST_F(RecordedPassTest, AKernelThatFailsInAReplayIsSuspectedByItsOpsName) {
  Open();
  ASSERT_TRUE(Record(kFirst));
  Read(1);
  be_->Copy(View(2), View(0));
  cuda_emu::FailLaunch(2);
  Pass(kFirst);
  EXPECT_THAT(ErrorOf([&] { Read(1); }),
              testing::AllOf(HasSubstr("CopyToHost, cudaStreamSynchronize(stream_): unspecified"),
                             HasSubstr(" 1 Copy 1 GatherRows 1 ScatterAddRows")));
}

TEST_F(RecordedPassTest, ARefusedGraphIsNamed) {
  Open();
  ASSERT_TRUE(Record(kFirst));
  Read(1);
  cuda_emu::RefuseLaunch(1);
  EXPECT_THAT(ErrorOf([&] { Pass(kFirst); }),
              testing::StartsWith("a recorded pass, cudaGraphLaunch(pass.graph, queue_.stream()): "
                                  "invalid configuration argument"));
}

// A launch that is refused while it is captured: the error names the op, and nothing is left over.
TEST_F(RecordedPassTest, ALaunchThatIsRefusedWhileRecordingIsNamed) {
  Open();
  cuda_emu::RefuseLaunch(2);
  EXPECT_THAT(ErrorOf([&] { Record(kFirst); }),
              testing::StartsWith("recording a pass, ScatterAddRows, "));
  EXPECT_EQ(cuda_emu::LiveGraphs(), 0);
  cudaGetLastError();
  Pass(kSecond);
  EXPECT_EQ(Read(1), (Values{1, 1, 3}));
  ASSERT_TRUE(Record(kFirst));
}

// ---- What is compared
// --------------------------------------------------------------------------------

TEST(CallListTest, TellsCallsApartByEveryArgument) {
  const auto f = [](int) {};
  const auto g = [](float) {};
  void (*const one)(int) = f;
  void (*const other)(float) = g;
  const cuda::Rows rows = {nullptr, 3, cuda::Type::kFloat32};
  cuda::Rows stride = rows, type = rows;
  stride.stride = 4;
  type.type = cuda::Type::kBFloat16;
  cuda::CallList calls;
  calls.Add(one, dim3(2, 3), 1.5f, rows);
  EXPECT_TRUE(calls.Is(0, one, dim3(2, 3), 1.5f, rows));
  EXPECT_FALSE(calls.Is(1, one, dim3(2, 3), 1.5f, rows));
  EXPECT_FALSE(calls.Is(0, other, dim3(2, 3), 1.5f, rows));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 4), 1.5f, rows));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 3, 2), 1.5f, rows));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 3), 1.25f, rows));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 3), 1.5, rows));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 3), 1.5f, stride));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 3), 1.5f, type));
  EXPECT_FALSE(calls.Is(0, one, dim3(2, 3), 1.5f));
  calls.Add(0.f);
  EXPECT_FALSE(calls.Is(1, -0.f));
  calls.Add(NAN);
  EXPECT_TRUE(calls.Is(2, NAN));
}

}  // namespace
}  // namespace sensorium
