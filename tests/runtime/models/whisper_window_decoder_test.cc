#include "runtime/models/whisper_window_decoder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/log_softmax.h"
#include "tests/runtime/models/byte_vocabulary.h"

namespace sensorium {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Ids = std::vector<int32_t>;
using Row = std::vector<float>;                // logits [kVocabSize]
using Model = std::function<Row(const Ids&)>;  // what follows the tokens after the prompt

constexpr float kInf = std::numeric_limits<float>::infinity();

class WhisperWindowDecoderTest : public testing::Test {
 protected:
  // Every text byte, timestamp and special token at `value`.
  static Row Flat(float value = 0) { return Row(kVocabSize, value); }
  static Row With(Row row, const std::map<int32_t, float>& logits) {
    for (const auto& [id, logit] : logits) row[id] = logit;
    return row;
  }

  WhisperWindowDecoder Decoder(const WhisperWindowOptions& options, Ids prompt = {kSot},
                               int32_t text_context = 40) const {
    return {b_.vocabulary, *b_.tokenizer, options, std::move(prompt), 0, text_context};
  }

  // What the CPU backend chooses from logits [rows, kVocabSize]; good until the next call.
  std::span<const ChosenToken> Choose(const Row& logits,
                                      std::span<const TokenChoice> choices) const {
    const auto rows = static_cast<int64_t>(logits.size()) / kVocabSize;
    be_->ChooseTokens(chosen_,
                      ConstTensorView(reinterpret_cast<const std::byte*>(logits.data()),
                                      DType::kFloat32, {rows, kVocabSize}),
                      choices);
    be_->Wait();
    return chosen_.all();
  }

  // Feeds a decoder as the engine does: each row continues the row that is its parent.
  WhisperWindowResult Run(WhisperWindowDecoder decoder, const Model& model,
                          size_t* most_rows = nullptr) const {
    std::vector<Ids> rows = {{}};
    const TokenChoice start = decoder.StartChoice();
    decoder.ReadStart(Choose(Flat(), {&start, 1})[0]);
    decoder.Advance(Choose(model({}), decoder.Choices()));
    while (!decoder.done()) {
      if (most_rows) *most_rows = std::max(*most_rows, decoder.next().size());
      EXPECT_LE(static_cast<int32_t>(decoder.next().size()), decoder.max_rows());
      std::vector<Ids> children;
      std::vector<float> logits;
      for (const auto& [parent, token] : decoder.next()) {
        children.push_back(rows.at(parent));
        children.back().push_back(token);
        const Row row = model(children.back());
        logits.insert(logits.end(), row.begin(), row.end());
      }
      rows = std::move(children);
      decoder.Advance(Choose(logits, decoder.Choices()));
    }
    EXPECT_THAT(decoder.next(), IsEmpty());
    return decoder.Result();
  }

  // The ids that may follow `tokens`: those that a greedy decoder takes when they lead by far. On
  // the way there the wanted token leads.
  std::set<int32_t> Allowed(const Ids& tokens, WhisperWindowOptions options) const {
    options.sample_len = static_cast<int32_t>(tokens.size()) + 1;
    std::set<int32_t> allowed;
    for (int32_t id = 0; id < kVocabSize; ++id) {
      const auto result = Run(Decoder(options), [&](const Ids& before) {
        return With(Flat(), {{before.size() < tokens.size() ? tokens[before.size()] : id, 1000}});
      });
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), result.tokens.begin()))
          << "the way there is not allowed itself";
      const bool ended = result.tokens.size() == tokens.size();
      if (id == (ended ? kEot : result.tokens.back())) allowed.insert(id);
    }
    return allowed;
  }
  // [begin, end) of each pair.
  static std::set<int32_t> Ranges(std::initializer_list<std::pair<int32_t, int32_t>> ranges,
                                  const std::set<int32_t>& without = {}) {
    std::set<int32_t> ids;
    for (const auto& [begin, end] : ranges) {
      for (int32_t id = begin; id < end; ++id) {
        if (!without.count(id)) ids.insert(id);
      }
    }
    return ids;
  }

  const ByteVocabulary b_;
  const std::unique_ptr<Backend> be_ = *CpuBackend::Create({.threads = 1, .level = {}});
  mutable ChosenTokens chosen_;
};

// --- Logit filters, on the table of the states of a sequence (whisper.md, section 5).

TEST_F(WhisperWindowDecoderTest, BeginsWithATimeUpToTheCap) {
  EXPECT_EQ(Allowed({}, {.max_initial_timestamp_index = 4}), Ranges({{kTime, kTime + 5}}));
  EXPECT_EQ(Allowed({}, {.max_initial_timestamp_index = 0}), Ranges({{kTime, kTime + 1}}));
  EXPECT_EQ(Allowed({}, {}), Ranges({{kTime, kPadding}}));
  EXPECT_EQ(Allowed({}, {.max_initial_timestamp_index = std::numeric_limits<int32_t>::max()}),
            Ranges({{kTime, kPadding}}));
}

TEST_F(WhisperWindowDecoderTest, FollowsTheFirstTimeWithAnythingButATime) {
  EXPECT_EQ(Allowed({kTime + 2}, {}), Ranges({{0, kNoTimestamps}}));
}

TEST_F(WhisperWindowDecoderTest, FollowsTextWithTextOrALaterTime) {
  EXPECT_EQ(Allowed({kTime + 2, 'a'}, {}), Ranges({{0, kNoTimestamps}, {kTime + 3, kPadding}}));
}

TEST_F(WhisperWindowDecoderTest, FollowsASecondTimeWithItsPairOrTheEnd) {
  EXPECT_EQ(Allowed({kTime + 2, 'a', kTime + 7}, {}),
            Ranges({{kEot, kNoTimestamps}, {kTime + 7, kPadding}}));
}

TEST_F(WhisperWindowDecoderTest, FollowsAPairOfTimesWithAnythingButATime) {
  EXPECT_EQ(Allowed({kTime, 'a', kTime + 7, kTime + 7}, {}), Ranges({{0, kNoTimestamps}}));
  EXPECT_EQ(Allowed({kTime, 'a', kTime + 7, kTime + 9, 'b'}, {}),
            Ranges({{0, kNoTimestamps}, {kTime + 10, kPadding}}));
}

TEST_F(WhisperWindowDecoderTest, HasNoRulesForTimesWithoutTimestamps) {
  const WhisperWindowOptions options = {.without_timestamps = true, .suppress_blank = false};
  EXPECT_EQ(Allowed({}, options), Ranges({{0, kPadding}}));
  EXPECT_EQ(Allowed({kTime + 5, kTime + 1}, options), Ranges({{0, kPadding}}));
}

TEST_F(WhisperWindowDecoderTest, SuppressesABlankOnlyInTheBeginning) {
  const WhisperWindowOptions options = {.without_timestamps = true};
  EXPECT_EQ(Allowed({}, options), Ranges({{0, kPadding}}, {' ', kEot}));
  EXPECT_EQ(Allowed({'a'}, options), Ranges({{0, kPadding}}));
}

TEST_F(WhisperWindowDecoderTest, AddsThePromptsIdsToAListThatIsNotEmpty) {
  EXPECT_EQ(Allowed({'a'}, {.without_timestamps = true, .suppress = {'x', '!', 'x'}}),
            Ranges({{0, kPadding}},
                   {'x', '!', kSot, kTranslate, kTranscribe, kSotLm, kSotPrev, kNoSpeech}));
}

TEST_F(WhisperWindowDecoderTest, TakesATimeWhenAllTimesTogetherAreLikelierThanAnyOtherToken) {
  // After a text at 0.00 ten times are left. Each has logit 0, so together they have log(10).
  const auto second = [&](float text) {
    const auto result = Run(Decoder({.sample_len = 3}), [&](const Ids& before) {
      if (before.empty()) return With(Flat(), {{kTime, 50}});
      if (before.size() == 1) return With(Flat(), {{'a', 50}});
      return With(Flat(-50), {{'b', text},
                              {kTime, 50},  // banned: must not count
                              {kTime + 1, 0},
                              {kTime + 2, 0},
                              {kTime + 3, 0},
                              {kTime + 4, 0},
                              {kTime + 5, 0},
                              {kTime + 6, 0},
                              {kTime + 7, 0},
                              {kTime + 8, 0},
                              {kTime + 9, 0},
                              {kTime + 10, 0}});
    });
    return result.tokens.at(2);
  };
  EXPECT_EQ(second(std::log(10.0f) + 0.01f), 'b');
  EXPECT_EQ(second(std::log(10.0f) - 0.01f), kTime + 1);
}

TEST_F(WhisperWindowDecoderTest, MasksPaddingBeforeTimesAreWeighed) {
  const auto result = Run(Decoder({.sample_len = 2}), [&](const Ids& before) {
    if (before.empty()) return With(Flat(), {{kTime, 50}});
    return With(Flat(), {{'a', 10}, {kPadding, 1000}, {kPadding + 2, 1000}});
  });
  EXPECT_THAT(result.tokens, ElementsAre(kTime, 'a'));
}

// --- Greedy and sampling.

TEST_F(WhisperWindowDecoderTest, SumsTheFilteredLogProbabilitiesAndTheEnds) {
  const WhisperWindowOptions options = {.without_timestamps = true, .suppress = {'x'}};
  const auto result = Run(Decoder(options), [&](const Ids& before) {
    Row row = With(Flat(-kInf), {{'a', 1}, {'b', 0}, {'x', 9}, {kEot, -1}});
    if (before.size() == 2) row[kEot] = 5;
    return row;
  });
  EXPECT_THAT(result.tokens, ElementsAre('a', 'a'));
  // EOT may not come first, 'x' never.
  const double first = 1 - std::log(std::exp(1) + 1);
  const double second = 1 - std::log(std::exp(1) + 1 + std::exp(-1));
  const double end = 5 - std::log(std::exp(1) + 1 + std::exp(5));
  EXPECT_NEAR(result.sum_logprob, first + second + end, 1e-6);
  EXPECT_NEAR(result.avg_logprob, (first + second + end) / 3, 1e-6);
  EXPECT_EQ(result.text, "aa");
}

TEST_F(WhisperWindowDecoderTest, GivesTextWithoutTimesAndWithoutOuterSpace) {
  const Ids said = {kTime, ' ', 'o', 'h', ' ', 'n', 'o', '\n', kTime + 4};
  const auto result = Run(Decoder({}), [&](const Ids& before) {
    return With(Flat(), {{before.size() < said.size() ? said[before.size()] : kEot, 1000}});
  });
  EXPECT_EQ(result.tokens, said);
  EXPECT_EQ(result.text, "oh no");
  EXPECT_FLOAT_EQ(result.compression_ratio, 5.0f / 13.0f);
}

TEST_F(WhisperWindowDecoderTest, TakesNoSpeechFromTheRawLogitsOfTheStart) {
  auto decoder = Decoder({.sample_len = 1, .without_timestamps = true, .suppress = {'x'}});
  const Row sot = With(Flat(-kInf), {{kNoSpeech, 1}, {'x', 2}, {kPadding, 0}});
  const TokenChoice start = decoder.StartChoice();
  decoder.ReadStart(Choose(sot, {&start, 1})[0]);
  decoder.Advance(Choose(Flat(), decoder.Choices()));
  EXPECT_NEAR(decoder.Result().no_speech_prob,
              std::exp(1) / (std::exp(1) + std::exp(2) + std::exp(0)), 1e-6);
}

TEST_F(WhisperWindowDecoderTest, StopsAtTheSampleLengthOrTheContext) {
  const Model endless = [&](const Ids&) { return With(Flat(), {{'a', 1000}}); };
  const auto length = [&](int32_t sample_len, size_t prompt) {
    const WhisperWindowOptions options = {.sample_len = sample_len, .without_timestamps = true};
    return Run(Decoder(options, Ids(prompt, kSot), /*text_context=*/40), endless).tokens.size();
  };
  EXPECT_EQ(length(7, 4), 7u);
  EXPECT_EQ(length(0, 4), 20u);  // half the context
  EXPECT_EQ(length(30, 4), 30u);
  // What comes at the last position, 39, is the 41st token of the sequence and is not fed.
  EXPECT_EQ(length(40, 4), 37u);
  EXPECT_EQ(length(40, 39), 2u);
}

TEST_F(WhisperWindowDecoderTest, SamplesAsTheSoftmaxAtItsTemperature) {
  const Row logits = With(Flat(-kInf), {{'a', 2}, {'b', 1}, {'c', 0}});
  std::map<int32_t, int> count;
  constexpr int kDraws = 20000;
  for (int seed = 0; seed < kDraws; ++seed) {
    const auto result = Run(Decoder({.temperature = 0.5f,
                                     .seed = static_cast<uint64_t>(seed),
                                     .sample_len = 1,
                                     .without_timestamps = true}),
                            [&](const Ids&) { return logits; });
    const int32_t id = result.tokens.at(0);
    ++count[id];
    // The log-probability is the one before temperature.
    EXPECT_NEAR(result.sum_logprob, logits[id] - LogSumExp(logits), 1e-5);
    EXPECT_FLOAT_EQ(result.temperature, 0.5f);
  }
  const double sum = std::exp(4) + std::exp(2) + std::exp(0);
  for (const auto& [id, n] : count) {
    const double p = std::exp(2 * logits[id]) / sum;
    EXPECT_NEAR(n, kDraws * p, 4 * std::sqrt(kDraws * p * (1 - p))) << static_cast<char>(id);
  }
  EXPECT_EQ(count.size(), 3u);
}

// A made-up language model over a, b, c and EOT: what follows depends on all that came before.
Model RandomModel(uint32_t seed, float eot_bias) {
  return [=](const Ids& before) {
    uint32_t hash = seed * 2654435761u + 12345;
    for (const int32_t id : before) hash = (hash ^ static_cast<uint32_t>(id)) * 16777619u + 977;
    std::mt19937 rng(hash);
    std::normal_distribution<float> normal(0, 1.5);
    Row row(kVocabSize, -kInf);
    for (const int32_t id : {int32_t{'a'}, int32_t{'b'}, int32_t{'c'}}) row[id] = normal(rng);
    row[kEot] = normal(rng) + eot_bias;
    return row;
  };
}

TEST_F(WhisperWindowDecoderTest, BestOfIsTheBestOfItsSamplesAlone) {
  int not_the_first = 0;
  for (uint32_t trial = 0; trial < 40; ++trial) {
    const Model model = RandomModel(trial, -1);
    const WhisperWindowOptions one = {.temperature = 0.9f,
                                      .seed = trial,
                                      .sample_len = 8,
                                      .without_timestamps = true,
                                      .stream_base = 700};
    WhisperWindowOptions many = one;
    many.best_of = 5;
    many.beam_size = 3;  // counts at temperature 0 alone
    std::vector<WhisperWindowResult> alone;
    for (uint64_t i = 0; i < 5; ++i) {
      WhisperWindowOptions sample = one;
      sample.stream_base += i;
      alone.push_back(Run(Decoder(sample), model));
    }
    const auto score = [](const WhisperWindowResult& r) {
      return r.sum_logprob / static_cast<double>(r.tokens.size());
    };
    const auto best =
        std::max_element(alone.begin(), alone.end(),
                         [&](const auto& a, const auto& b) { return score(a) < score(b); });
    size_t rows = 0;
    const auto got = Run(Decoder(many), model, &rows);
    EXPECT_EQ(got.tokens, best->tokens) << "trial " << trial;
    EXPECT_EQ(got.sum_logprob, best->sum_logprob) << "trial " << trial;
    EXPECT_EQ(rows, 5u);
    not_the_first += best != alone.begin();
  }
  EXPECT_GT(not_the_first, 10);
}

TEST_F(WhisperWindowDecoderTest, IgnoresBestOfAtTemperatureZero) {
  EXPECT_EQ(Decoder({.best_of = 5}).max_rows(), 1);
  EXPECT_EQ(Decoder({.beam_size = 4, .best_of = 5}).max_rows(), 4);
  EXPECT_EQ(Decoder({.beam_size = 4, .best_of = 5, .temperature = 0.2f}).max_rows(), 5);
}

// --- Beam search.

struct Scored {
  Ids tokens;
  float sum;
};
double RankOf(const Scored& s, std::optional<float> length_penalty) {
  const double length = static_cast<double>(s.tokens.size());
  return s.sum / (length_penalty ? std::pow((5 + length) / 6, *length_penalty) : length);
}

// decoding.py's BeamSearchDecoder and MaximumLikelihoodRanker written as they are there: all beams
// exist from the start, and candidates are a dictionary by sequence.
Scored ReferenceBeamSearch(const Model& model, int beam_size, float patience, int sample_len,
                           std::optional<float> length_penalty) {
  std::vector<Scored> beams(beam_size, Scored{{}, 0});
  std::vector<Scored> finished;
  const size_t wanted = static_cast<size_t>(std::lrint(beam_size * patience));
  for (int step = 0; step < sample_len; ++step) {
    std::map<Ids, float> scores;  // EOT included
    for (const Scored& beam : beams) {
      Row row = model(beam.tokens);
      if (step == 0) row[kEot] = -kInf;  // suppress_blank
      const double norm = LogSumExp(row);
      std::vector<int32_t> order(row.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return row[a] > row[b]; });
      for (int i = 0; i < beam_size + 1 && row[order[i]] > -kInf; ++i) {
        Ids sequence = beam.tokens;
        sequence.push_back(order[i]);
        scores[sequence] = beam.sum + LogProb(row, norm, order[i]);
      }
    }
    std::vector<std::pair<Ids, float>> sorted(scores.begin(), scores.end());
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    std::vector<Scored> live, ended;
    for (const auto& [sequence, sum] : sorted) {
      if (sequence.back() == kEot) {
        ended.push_back({Ids(sequence.begin(), sequence.end() - 1), sum});
      } else {
        live.push_back({sequence, sum});
        if (static_cast<int>(live.size()) == beam_size) break;
      }
    }
    for (const Scored& s : ended) {
      if (finished.size() < wanted) finished.push_back(s);
    }
    beams = live;
    if (finished.size() >= wanted) break;
  }
  for (const Scored& beam : beams) {
    if (static_cast<int>(finished.size()) >= beam_size) break;
    finished.push_back(beam);
  }
  return *std::max_element(finished.begin(), finished.end(), [&](const auto& a, const auto& b) {
    return RankOf(a, length_penalty) < RankOf(b, length_penalty);
  });
}

TEST_F(WhisperWindowDecoderTest, BeamSearchIsTheReferences) {
  std::mt19937 rng(20260101);
  int differs_from_greedy = 0, ended_early = 0;
  for (uint32_t trial = 0; trial < 300; ++trial) {
    const Model model = RandomModel(trial, -1.0f + 0.5f * static_cast<float>(trial % 5));
    const int beam_size = 1 + static_cast<int>(rng() % 6),
              sample_len = 2 + static_cast<int>(rng() % 7);
    const float patience = std::array{1.0f, 0.5f, 2.0f, 1.5f}[rng() % 4];
    // beam_size * patience = 0.5 would round to none wanted, which the reference refuses.
    if (std::lrint(static_cast<float>(beam_size) * patience) == 0) continue;
    const std::optional<float> penalty =
        std::array<std::optional<float>, 3>{std::nullopt, 0.6f, 1.0f}[rng() % 3];
    const Scored want = ReferenceBeamSearch(model, beam_size, patience, sample_len, penalty);
    const auto got = Run(Decoder({.beam_size = beam_size,
                                  .patience = patience,
                                  .length_penalty = penalty,
                                  .sample_len = sample_len,
                                  .without_timestamps = true}),
                         model);
    EXPECT_EQ(got.tokens, want.tokens) << "trial " << trial;
    EXPECT_EQ(got.sum_logprob, want.sum) << "trial " << trial;
    const auto greedy = Run(Decoder({.sample_len = sample_len, .without_timestamps = true}), model);
    differs_from_greedy += greedy.tokens != got.tokens;
    ended_early += static_cast<int>(got.tokens.size()) < sample_len;
  }
  EXPECT_GT(differs_from_greedy, 50);
  EXPECT_GT(ended_early, 50);
}

TEST_F(WhisperWindowDecoderTest, AWideBeamFindsTheBestOfAllSequences) {
  constexpr int kLength = 4;
  for (uint32_t trial = 0; trial < 50; ++trial) {
    const Model model = RandomModel(1000 + trial, -0.5f);
    Scored best{{}, -kInf};
    double best_rank = -kInf;
    // Every sequence of up to kLength tokens that ends, or is as long as may be.
    const std::function<void(const Scored&)> extend = [&](const Scored& s) {
      const auto consider = [&](const Scored& whole) {
        if (const double rank = RankOf(whole, std::nullopt); rank > best_rank) {
          best_rank = rank;
          best = whole;
        }
      };
      if (s.tokens.size() == kLength) return consider(s);
      Row row = model(s.tokens);
      if (s.tokens.empty()) row[kEot] = -kInf;
      const double norm = LogSumExp(row);
      if (!s.tokens.empty()) consider({s.tokens, s.sum + LogProb(row, norm, kEot)});
      for (const int32_t id : {int32_t{'a'}, int32_t{'b'}, int32_t{'c'}}) {
        Scored next = {s.tokens, s.sum + LogProb(row, norm, id)};
        next.tokens.push_back(id);
        extend(next);
      }
    };
    extend({{}, 0});
    // 3^4 sequences of full length at most live at once; those that end are 3 + 9 + 27.
    const auto got = Run(
        Decoder(
            {.beam_size = 81, .patience = 2, .sample_len = kLength, .without_timestamps = true}),
        model);
    EXPECT_EQ(got.tokens, best.tokens) << "trial " << trial;
    EXPECT_EQ(got.sum_logprob, best.sum) << "trial " << trial;
  }
}

TEST_F(WhisperWindowDecoderTest, ABeamKeepsTheTimestampRulesOfEachHypothesis) {
  for (uint32_t trial = 0; trial < 100; ++trial) {
    const auto result =
        Run(Decoder({.beam_size = 4, .max_initial_timestamp_index = 5}), [&](const Ids& before) {
          std::mt19937 rng(trial * 7919 + 31 * before.size() +
                           (before.empty() ? 0 : before.back()));
          std::normal_distribution<float> normal(0, 2);
          Row row(kVocabSize);
          for (float& x : row) x = normal(rng);
          return row;
        });
    ASSERT_FALSE(result.tokens.empty());
    ASSERT_GE(result.tokens[0], kTime);
    EXPECT_LE(result.tokens[0], kTime + 5);
    int32_t latest = 0;
    for (const int32_t id : result.tokens) {
      EXPECT_NE(id, kNoTimestamps);
      if (id < kTime) continue;
      EXPECT_GE(id, latest) << "trial " << trial;
      EXPECT_LT(id, kPadding);
      latest = id;
    }
  }
}

TEST_F(WhisperWindowDecoderTest, EndsWhenAListLeavesNothingToChoose) {
  WhisperWindowOptions options = {.max_initial_timestamp_index = 1};
  options.suppress = {kTime, kTime + 1};  // all that a window may begin with
  for (const int32_t beam_size : {0, 3}) {
    options.beam_size = beam_size;
    const auto result = Run(Decoder(options), [&](const Ids&) { return Flat(); });
    EXPECT_THAT(result.tokens, IsEmpty());
    EXPECT_EQ(result.avg_logprob, 0.0f);
    EXPECT_EQ(result.text, "");
  }
}

TEST_F(WhisperWindowDecoderTest, ATinyPatienceStillWaitsForOne) {
  const auto result =
      Run(Decoder({.beam_size = 2, .patience = 0.1f, .sample_len = 5, .without_timestamps = true}),
          [&](const Ids& before) {
            return With(Flat(-kInf), {{'a', 0}, {'b', -9}, {kEot, before.size() * 3.0f - 9}});
          });
  EXPECT_GT(result.tokens.size(), 1u);
}

TEST_F(WhisperWindowDecoderTest, AnEmptyHypothesisHasAScore) {
  for (const std::optional<float> penalty : {std::optional<float>(), std::optional<float>(0.6f)}) {
    const auto result = Run(Decoder({.beam_size = 2,
                                     .length_penalty = penalty,
                                     .without_timestamps = true,
                                     .suppress_blank = false}),
                            [&](const Ids&) {
                              return With(Flat(-kInf), {{'a', -4}, {kEot, 4}});
                            });
    EXPECT_THAT(result.tokens, IsEmpty());
    EXPECT_NEAR(result.avg_logprob, result.sum_logprob, 1e-7);
    EXPECT_LT(result.sum_logprob, 0);
  }
}

// --- Language detection.

TEST_F(WhisperWindowDecoderTest, DetectsALanguageAmongTheLanguagesOnly) {
  const WhisperLanguage language = DetectLanguage(std::vector<float>{1, 2}, b_.vocabulary);
  EXPECT_EQ(language.code, "de");
  EXPECT_EQ(language.id, kGerman);
  EXPECT_NEAR(language.probability, 1 / (1 + std::exp(-1)), 1e-6);
  ASSERT_EQ(language.probabilities.size(), 2u);
  EXPECT_EQ(language.probabilities[0].first, "en");
  EXPECT_NEAR(language.probabilities[0].second + language.probabilities[1].second, 1, 1e-6);
}

}  // namespace
}  // namespace sensorium
