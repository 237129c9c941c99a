#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/log_softmax.h"

namespace sensorium {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(int vocab, std::mt19937& random, float spread = 3) {
  std::normal_distribution<float> logit(0, spread);
  std::vector<float> logits(vocab);
  for (float& x : logits) x = logit(random);
  return logits;
}

// The distribution that steps 5 to 8 leave, in double precision with a full sort.
std::vector<double> Reference(const std::vector<float>& logits, const SamplingParams& p) {
  const int vocab = static_cast<int>(logits.size());
  std::vector<int> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<double> weight(vocab, 0);
  for (int i = 0; i < vocab; ++i) {
    weight[i] = std::exp((double{logits[i]} - logits[order[0]]) / p.temperature);
  }
  std::vector<bool> kept(vocab, true);
  if (p.top_k > 0 && p.top_k < vocab) {
    for (int i = 0; i < vocab; ++i) kept[i] = logits[i] >= logits[order[p.top_k - 1]];
  }
  for (int i = 0; i < vocab; ++i) kept[i] = kept[i] && weight[i] >= p.min_p;
  double total = 0;
  for (int i = 0; i < vocab; ++i) total += kept[i] ? weight[i] : 0;
  double mass = 0;
  for (const int i : order) {
    if (!kept[i]) continue;
    if (mass >= p.top_p * total) kept[i] = false;
    mass += weight[i];
  }
  total = 0;
  for (int i = 0; i < vocab; ++i) total += kept[i] ? weight[i] : 0;
  for (int i = 0; i < vocab; ++i) weight[i] = kept[i] ? weight[i] / total : 0;
  return weight;
}

// Draws on the CPU backend.
class Drawer {
 public:
  Drawer(SamplingParams params, int32_t vocab_size)
      : params_(std::move(params)), vocab_size_(vocab_size) {}
  struct Choice {
    int32_t token;
    float logprob;
    std::vector<TokenLogProb> alternatives;
  };
  Choice Sample(const std::vector<float>& logits, std::span<const int32_t> prompt,
                std::span<const int32_t> generated, int32_t num_alternatives, uint64_t stream) {
    const auto answer_tokens = static_cast<int32_t>(generated.size());
    Sampler sampler(params_, vocab_size_, prompt, answer_tokens, stream);
    for (const int32_t token : generated) sampler.Push(token);
    TokenChoice choice = sampler.choice();
    choice.num_likeliest = num_alternatives;
    ChosenTokens chosen;
    be_->ChooseTokens(chosen,
                      ConstTensorView(reinterpret_cast<const std::byte*>(logits.data()),
                                      DType::kFloat32, {1, vocab_size_}),
                      {&choice, 1});
    be_->Wait();
    return {chosen[0].token,
            chosen[0].logprob,
            {chosen[0].likeliest.begin(), chosen[0].likeliest.end()}};
  }

 private:
  const SamplingParams params_;
  const int32_t vocab_size_;
  const std::unique_ptr<Backend> be_ = *CpuBackend::Create({.threads = 1, .level = {}});
};

TEST(SamplerTest, DrawsFollowTheFilteredDistribution) {
  std::mt19937 random(1);
  const std::vector<float> logits = RandomLogits(40, random, 1.5f);
  for (const SamplingParams& p :
       {SamplingParams{.temperature = 1}, SamplingParams{.temperature = 0.5f},
        SamplingParams{.temperature = 2, .top_k = 7},
        SamplingParams{.temperature = 1, .top_p = 0.6f},
        SamplingParams{.temperature = 1, .min_p = 0.2f},
        SamplingParams{.temperature = 1.3f, .top_k = 12, .top_p = 0.8f, .min_p = 0.05f}}) {
    const std::vector<double> expected = Reference(logits, p);
    Drawer sampler(p, 40);
    constexpr int kDraws = 20000;
    std::vector<int> counts(40, 0);
    for (int i = 0; i < kDraws; ++i) ++counts[sampler.Sample(logits, {}, {}, 0, i).token];
    for (int id = 0; id < 40; ++id) {
      if (expected[id] == 0) {
        EXPECT_EQ(counts[id], 0) << "a filtered token was drawn";
      }
      // Fixed seed: five standard deviations is no lottery.
      const double deviation = std::sqrt(expected[id] * (1 - expected[id]) / kDraws);
      EXPECT_NEAR(counts[id] / double{kDraws}, expected[id], 5 * deviation + 1e-9) << id;
    }
  }
}

TEST(SamplerTest, NeverDrawsWhatTheFiltersRemoveAtAnySize) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    const int vocab = std::uniform_int_distribution<int>(1, 3000)(random);
    std::vector<float> logits = RandomLogits(vocab, random, 0.1f + round % 9);
    if (round % 3 == 0) {
      for (float& x : logits) x = std::round(x);  // ties
    }
    std::uniform_real_distribution<float> unit(0, 1);
    const SamplingParams p{.temperature = 0.05f + 2 * unit(random),
                           .top_k = round % 2 ? 1 + static_cast<int>(random() % 60) : 0,
                           .top_p = round % 5 ? 0.01f + 0.98f * unit(random) : 1.0f,
                           .min_p = round % 7 ? 0 : 0.3f * unit(random),
                           .seed = random()};
    const std::vector<double> expected = Reference(logits, p);
    Drawer sampler(p, vocab);
    for (int i = 0; i < 20; ++i) {
      const int32_t token = sampler.Sample(logits, {}, {}, 0, i).token;
      ASSERT_TRUE(token >= 0 && token < vocab);
      // The very edge of the nucleus may fall either way by rounding.
      const double least =
          std::exp((double{logits[token]} - *std::max_element(logits.begin(), logits.end())) /
                   p.temperature);
      EXPECT_TRUE(expected[token] > 0 || least < 1e-3) << "round " << round << " token " << token;
    }
  }
}

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowestIdOnTies) {
  Drawer sampler({}, 5);
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 3, 2, 3, -1}, {}, {}, 0, 0).token, 1);
}

TEST(SamplerTest, ADrawDependsOnSeedStreamAndPositionAlone) {
  std::mt19937 random(2);
  const std::vector<float> a = RandomLogits(500, random), b = RandomLogits(500, random);
  Drawer one({.temperature = 1, .seed = 9}, 500), two({.temperature = 1, .seed = 9}, 500);
  const std::vector<int32_t> generated = {4, 8};
  const auto first = one.Sample(a, {}, generated, 3, 1);
  for (int i = 0; i < 10; ++i) two.Sample(b, {}, generated, 0, i);  // other calls in between
  const auto again = two.Sample(a, {}, generated, 3, 1);
  EXPECT_EQ(first.token, again.token);
  EXPECT_EQ(first.logprob, again.logprob);
  EXPECT_EQ(first.alternatives, again.alternatives);
  std::set<int32_t> streams;
  for (int i = 0; i < 50; ++i) streams.insert(one.Sample(a, {}, generated, 0, i).token);
  EXPECT_GT(streams.size(), 5u);
}

TEST(SamplerTest, LogProbabilitiesAreTheModelsOwnBeforeAnyStep) {
  const std::vector<float> logits = {0, 1, 2, 3};
  Drawer sampler({.temperature = 0.1f, .top_k = 1, .logit_bias = {{0, 50.0f}}}, 4);
  const auto choice = sampler.Sample(logits, {}, {}, 2, 0);
  EXPECT_EQ(choice.token, 0);
  EXPECT_EQ(choice.logprob, LogProb(logits, LogSumExp(logits), 0));
  ASSERT_EQ(choice.alternatives.size(), 2u);
  EXPECT_EQ(choice.alternatives[0].first, 3);
  EXPECT_EQ(choice.alternatives[1].first, 2);
}

TEST(SamplerTest, RepetitionPenaltyCountsEachIdOnceInPromptOrAnswer) {
  const std::vector<float> logits = {4, 3.5f, -1, -1.5f};
  // 0 -> 2 once although it occurs three times; 2 -> -2.
  Drawer sampler({.repetition_penalty = 2}, 4);
  const std::vector<int32_t> prompt = {0, 0, 700}, generated = {2, 0};
  EXPECT_EQ(sampler.Sample(logits, prompt, generated, 0, 0).token, 1);
  Drawer mild({.repetition_penalty = 1.1f}, 4);  // 4 / 1.1 > 3.5; applied twice it would be below
  EXPECT_EQ(mild.Sample(logits, prompt, generated, 0, 0).token, 0);
}

TEST(SamplerTest, PresenceAndFrequencyCountTheAnswerNotThePrompt) {
  const std::vector<float> logits = {4, 3, 2};
  Drawer frequency({.frequency_penalty = 0.6f}, 3);
  const std::vector<int32_t> zero = {0}, twice = {0, 0};
  EXPECT_EQ(frequency.Sample(logits, twice, {}, 0, 0).token, 0);
  EXPECT_EQ(frequency.Sample(logits, {}, zero, 0, 0).token, 0);
  EXPECT_EQ(frequency.Sample(logits, {}, twice, 0, 0).token, 1);
  Drawer presence({.presence_penalty = 0.6f}, 3);
  EXPECT_EQ(presence.Sample(logits, {}, twice, 0, 0).token, 0);
}

// Room for its tokens is taken at the beginning: a step asks for none.
TEST(SamplerTest, PushTakesNoMemory) {
  const std::vector<int32_t> prompt = {9, 3, 3, 900, 5};
  Sampler sampler({.repetition_penalty = 1.5f,
                   .presence_penalty = 0.5f,
                   .frequency_penalty = 0.25f,
                   .logit_bias = {{7, 2.0f}, {3, -1.0f}}},
                  100, prompt, 4, 0);
  const LogitEdit* const first = sampler.choice().edits.data();
  for (const int32_t token : {50, 1, 50, 3}) sampler.Push(token);
  EXPECT_EQ(sampler.choice().edits.data(), first);
  EXPECT_EQ(sampler.choice().position, 4u);
  const auto fields = [](const LogitEdit& e) {
    return std::tuple(e.id, e.bias, e.repetition, e.penalty);
  };
  std::vector<std::tuple<int32_t, float, float, float>> edits;
  for (const LogitEdit& e : sampler.choice().edits) edits.push_back(fields(e));
  EXPECT_THAT(edits, testing::ElementsAre(
                         std::tuple(1, 0.0f, 1.5f, 0.75f), std::tuple(3, -1.0f, 1.5f, 0.75f),
                         std::tuple(5, 0.0f, 1.5f, 0.0f), std::tuple(7, 2.0f, 1.0f, 0.0f),
                         std::tuple(9, 0.0f, 1.5f, 0.0f), std::tuple(50, 0.0f, 1.5f, 1.0f)));
}

TEST(SamplerTest, AMaskedTokenIsNeverDrawn) {
  std::vector<float> logits(64, -kInf);
  logits[10] = 1;
  logits[20] = 0;
  Drawer sampler({.temperature = 5}, 64);
  std::set<int32_t> drawn;
  for (int i = 0; i < 200; ++i) drawn.insert(sampler.Sample(logits, {}, {}, 0, i).token);
  EXPECT_THAT(drawn, testing::ElementsAre(10, 20));
}

}  // namespace
}  // namespace sensorium
