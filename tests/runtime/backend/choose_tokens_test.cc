// ChooseTokens on every backend, against tests/reference: lists and greedy tokens exactly, log-
// probabilities within roundings, a draw by the share of the draws that its token has.
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/cpu/counter_rng.h"
#include "tests/reference/choose_tokens.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {
namespace {

constexpr DType kF32 = DType::kFloat32;
constexpr float kInf = std::numeric_limits<float>::infinity();

// Probabilities are float32 exponentials; sums of them are better than that.
constexpr double kTolerance = 2e-6;

// A choice and the arrays it looks into.
struct Asked {
  TokenChoice choice;
  std::vector<int32_t> banned, more_banned, asked;
  std::vector<LogitEdit> edits;
  const TokenChoice& Get() {
    choice.banned = {banned, more_banned};
    choice.asked = asked;
    choice.edits = edits;
    return choice;
  }
};

class ChooseTokensTest : public OpsTest {
 protected:
  // NaN between the rows: nobody may read there.
  Matrix Logits(int64_t rows, int64_t vocab, float spread) {
    Matrix m = Random(rows, vocab, kF32);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < vocab; ++i) m.Set(r, i, m.Get(r, i) * spread);
    }
    return m;
  }
  float Unit() { return std::uniform_real_distribution<float>(0, 1)(rng_); }
  bool Chance(int of) { return Below(of) == 0; }
  std::vector<int32_t> Ids(int32_t vocab, int64_t most) {
    std::vector<int32_t> ids(Below(most + 1));
    for (int32_t& id : ids) id = static_cast<int32_t>(Below(vocab));
    return ids;
  }

  Asked RandomChoice(int32_t rows, int32_t vocab) {
    Asked a;
    TokenChoice& c = a.choice;
    c.row = static_cast<int32_t>(Below(rows));
    if (Chance(2)) a.banned = Ids(vocab, 20);
    if (Chance(4)) a.more_banned = Ids(vocab, 3);
    for (TokenChoice::Range& range : c.banned_ranges) {
      if (!Chance(4)) continue;
      range.from = static_cast<int32_t>(Below(vocab + 1));
      range.to = static_cast<int32_t>(std::min<int64_t>(vocab, range.from + Below(vocab / 4 + 2)));
    }
    if (Chance(3)) c.timestamp_begin = static_cast<int32_t>(Below(vocab + 1));
    if (Chance(2)) {
      for (int32_t id = 0; id < vocab; ++id) {
        if (!Chance(7)) continue;
        LogitEdit e = {.id = id};
        if (Chance(2)) e.bias = Chance(9) ? -kInf : 4 * Unit() - 2;
        if (Chance(2)) e.repetition = 0.5f + Unit();
        if (Chance(2)) e.penalty = 2 * Unit() - 1;
        a.edits.push_back(e);
      }
    }
    if (!Chance(3)) c.temperature = 0.1f + 2 * Unit();
    if (Chance(2)) c.top_k = static_cast<int32_t>(1 + Below(vocab + 3));
    if (Chance(2)) c.top_p = Chance(4) ? 1e-6f : 0.05f + 0.94f * Unit();
    if (Chance(3)) c.min_p = 0.9f * Unit();
    c.seed = rng_();
    c.stream = rng_();
    c.position = Below(100000);
    if (Chance(2)) c.num_likeliest = static_cast<int32_t>(Below(TokenChoice::kMostLikeliest + 1));
    if (Chance(3)) a.asked = Ids(vocab, 5);
    return a;
  }

  const ChosenTokens& Choose(const Matrix& logits, std::span<const TokenChoice> choices) {
    be_->ChooseTokens(chosen_, View(logits), choices);
    be_->Wait();
    return chosen_;
  }

  // false: a decision was so near that roundings may have turned it.
  bool ExpectReference(const ChosenToken& got, const Matrix& logits, const TokenChoice& c) {
    std::vector<float> row;
    for (int64_t i = 0; i < logits.columns(); ++i) row.push_back(logits.Get(c.row, i));
    const reference::Choice truth = reference::Choose(row, c);
    EXPECT_EQ(got.asked.size(), c.asked.size());
    for (size_t i = 0; i < c.asked.size(); ++i) {
      const float want = row[c.asked[i]];
      EXPECT_TRUE(got.asked[i] == want || (std::isnan(got.asked[i]) && std::isnan(want)));
    }
    if (!c.asked.empty()) ExpectClose(got.raw_log_sum_exp, truth.raw_log_sum_exp);
    if (truth.rule_margin < kTolerance) return false;

    const size_t listed = std::min(truth.likeliest.size(), size_t(c.num_likeliest));
    EXPECT_EQ(got.likeliest.size(), listed);
    for (size_t i = 0; i < std::min(listed, got.likeliest.size()); ++i) {
      EXPECT_EQ(got.likeliest[i].first, truth.likeliest[i]) << "place " << i;
      ExpectClose(got.likeliest[i].second, truth.logprobs[truth.likeliest[i]]);
    }
    EXPECT_TRUE(got.token >= 0 && got.token < logits.columns()) << got.token;
    if (got.token < 0 || got.token >= logits.columns()) return true;
    ExpectClose(got.logprob, truth.logprobs[got.token]);

    const double draw = Uniform(c.seed, c.stream, c.position);
    const auto share = std::find_if(truth.shares.begin(), truth.shares.end(),
                                    [&](const auto& s) { return s.id == got.token; });
    if (share != truth.shares.end() && share->begin <= draw && draw < share->end) return true;
    if (truth.cut_margin < kTolerance) return false;
    EXPECT_NE(share, truth.shares.end()) << got.token << " may not be drawn";
    if (share == truth.shares.end()) return true;
    EXPECT_TRUE(share->begin - kTolerance <= draw && draw < share->end + kTolerance)
        << "a draw of " << draw << " took [" << share->begin << ", " << share->end << ")";
    return false;
  }
  // Every bit of an answer.
  static std::vector<uint32_t> Bits(const ChosenToken& c) {
    std::vector<uint32_t> out = {static_cast<uint32_t>(c.token)};
    const auto put = [&](float x) { out.push_back(std::bit_cast<uint32_t>(x)); };
    put(c.logprob);
    for (const auto& [id, logprob] : c.likeliest) {
      out.push_back(static_cast<uint32_t>(id));
      put(logprob);
    }
    for (const float x : c.asked) put(x);
    const auto raw = std::bit_cast<uint64_t>(c.raw_log_sum_exp);
    out.insert(out.end(), {static_cast<uint32_t>(raw), static_cast<uint32_t>(raw >> 32)});
    return out;
  }
  static void ExpectClose(double got, double want) {
    if (std::isinf(want)) {
      EXPECT_EQ(got, want);
    } else {
      EXPECT_NEAR(got, want, kTolerance * std::max(1.0, std::fabs(want)));
    }
  }

  void ExpectReferences(int64_t rows, int32_t vocab, int count, float spread,
                        const std::function<void(Matrix&)>& spoil) {
    SCOPED_TRACE(testing::Message() << "vocabulary " << vocab << ", spread " << spread);
    Matrix logits = Logits(rows, vocab, spread);
    spoil(logits);
    std::vector<Asked> asked;
    for (int i = 0; i < count; ++i) {
      asked.push_back(RandomChoice(static_cast<int32_t>(rows), vocab));
    }
    std::vector<TokenChoice> choices;
    for (Asked& a : asked) choices.push_back(a.Get());
    Choose(logits, choices);
    int near = 0;
    for (size_t i = 0; i < choices.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "choice " << i << " of row " << choices[i].row);
      near += !ExpectReference(chosen_[i], logits, choices[i]);
      if (HasFailure()) return;
    }
    EXPECT_LE(near, 1 + count / 20) << "too many that nobody judges";
  }

  ChosenTokens chosen_;
};

const auto kAsItIs = [](Matrix&) {};
// Many equal logits.
const auto kRounded = [](Matrix& m) {
  for (int64_t r = 0; r < m.rows(); ++r) {
    for (int64_t i = 0; i < m.columns(); ++i) m.Set(r, i, std::round(m.Get(r, i)));
  }
};
const auto kBroken = [](Matrix& m) {
  for (int64_t r = 0; r < m.rows(); ++r) {
    for (int64_t i = 0; i < m.columns(); ++i) {
      if ((i * 7 + r) % 3 == 0) m.Set(r, i, NAN);
      if ((i * 5 + r) % 4 == 0) m.Set(r, i, -kInf);
      if ((i * 3 + r) % 41 == 0) m.Set(r, i, -0.0f);
    }
  }
};

TEST_P(ChooseTokensTest, AnyChoiceIsTheReferences) {
  const int count = dtype() == kF32 ? 25 : 8;
  for (const int32_t vocab : {1, 2, 31, 97, 1027}) {
    for (const float spread : {0.3f, 3.0f, 20.0f}) {
      ExpectReferences(4, vocab, count, spread, kAsItIs);
    }
    ExpectReferences(4, vocab, count, 2, kRounded);
    ExpectReferences(4, vocab, count, 2, kBroken);
  }
}

TEST_P(ChooseTokensTest, LargeVocabulariesAreNoDifferent) {
  if (dtype() != kF32) return;  // logits are float32 in either
  ExpectReferences(2, 51866, 6, 3, kAsItIs);
  ExpectReferences(2, 51866, 3, 2, kRounded);
  ExpectReferences(1, 152064, 4, 3, kAsItIs);
}

// 2^n equal tokens share the draws out exactly: no border is rounded.
TEST_P(ChooseTokensTest, ADrawTakesTheTokenWhoseShareHoldsIt) {
  Matrix logits = Poisoned(1, 97, kF32);
  for (int i = 0; i < 97; ++i) logits.Set(0, i, i < 64 ? 1.5f : -kInf);
  std::vector<TokenChoice> choices(100);
  for (size_t i = 0; i < choices.size(); ++i) {
    choices[i].temperature = 0.5f + static_cast<float>(i % 3);
    choices[i].top_p = i % 2 ? 1.0f : 0.5f;  // half of them: the lowest ids
    choices[i].seed = i * 0x123456789abcdef1u;
    choices[i].stream = i << 40 | i;
    choices[i].position = i * 77;
  }
  Choose(logits, choices);
  for (size_t i = 0; i < choices.size(); ++i) {
    const float draw = Uniform(choices[i].seed, choices[i].stream, choices[i].position);
    ASSERT_EQ(chosen_[i].token, static_cast<int32_t>(draw * (i % 2 ? 64 : 32))) << i;
    ASSERT_EQ(chosen_[i].logprob, -std::log(64.0f));
  }
}

TEST_P(ChooseTokensTest, TiesGoToTheLowestIdWhateverTheSignOfZero) {
  Matrix logits = Poisoned(1, 70, kF32);
  for (int i = 0; i < 70; ++i) logits.Set(0, i, -1);
  for (int i : {13, 40, 69}) logits.Set(0, i, i == 13 ? -0.0f : 0.0f);
  TokenChoice c;
  c.num_likeliest = 5;
  Choose(logits, {&c, 1});
  EXPECT_EQ(chosen_[0].token, 13);
  std::vector<int32_t> ids;
  for (const auto& [id, logprob] : chosen_[0].likeliest) ids.push_back(id);
  EXPECT_EQ(ids, (std::vector<int32_t>{13, 40, 69, 0, 1}));
}

TEST_P(ChooseTokensTest, ARowOfNothingGivesTokenZeroAndNoProbability) {
  Matrix logits = Poisoned(3, 50, kF32);
  for (int i = 0; i < 50; ++i) {
    logits.Set(0, i, -kInf);
    logits.Set(1, i, NAN);
    logits.Set(2, i, static_cast<float>(i));
  }
  const std::vector<int32_t> asked = {7};
  std::vector<TokenChoice> choices(6);
  for (int i = 0; i < 6; ++i) {
    choices[i].row = i % 3;
    if (i % 3 == 2) choices[i].banned_ranges[1] = {0, 50};
    choices[i].temperature = i < 3 ? 0.0f : 1.0f;
    choices[i].top_k = 3, choices[i].top_p = 0.5f, choices[i].min_p = 0.1f;
    choices[i].num_likeliest = 4;
    choices[i].timestamp_begin = i == 4 ? 20 : -1;
    choices[i].asked = asked;
  }
  Choose(logits, choices);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(chosen_[i].token, 0) << i;
    EXPECT_EQ(chosen_[i].logprob, -kInf);
    EXPECT_TRUE(chosen_[i].likeliest.empty());
    if (i % 3 != 2) {
      EXPECT_EQ(chosen_[i].raw_log_sum_exp, -kInf);
    }
  }
  EXPECT_EQ(chosen_[2].asked[0], 7);  // before what is banned
}

TEST_P(ChooseTokensTest, AnInfiniteLogitIsCertain) {
  Matrix logits = Logits(1, 40, 1);
  for (int i : {11, 30}) logits.Set(0, i, kInf);
  std::vector<TokenChoice> choices(2);
  choices[1].temperature = 1;
  choices[1].num_likeliest = 3;
  Choose(logits, choices);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(chosen_[i].token, 11);
    EXPECT_EQ(chosen_[i].logprob, 0);
  }
  ASSERT_EQ(chosen_[1].likeliest.size(), 3u);
  EXPECT_EQ(chosen_[1].likeliest[1], TokenLogProb(30, 0.0f));
  EXPECT_EQ(chosen_[1].likeliest[2].second, -kInf);
}

// When all times together are likelier than any text, it is a time.
TEST_P(ChooseTokensTest, TimesTogetherOutweighTheLikeliestText) {
  Matrix logits = Poisoned(2, 130, kF32);
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < 130; ++i) logits.Set(r, i, i < 90 ? -5.0f : 0.0f);
    logits.Set(r, 50, std::log(40.0f) + (r ? -0.001f : 0.001f));
    logits.Set(r, 95, 100);  // banned: must not count
  }
  const std::vector<int32_t> banned = {95};
  TokenChoice c;
  c.banned[0] = banned;
  c.banned_ranges[2] = {129, 130};
  c.timestamp_begin = 90;
  c.num_likeliest = 1;
  std::vector<TokenChoice> choices = {c, c, c};
  choices[1].row = choices[2].row = 1;
  choices[0].banned_ranges[2] = choices[1].banned_ranges[2] = {};
  // 39 times are left in the first two, 38 in the last one.
  for (int i = 0; i < 130; ++i) {
    if (i == 50) logits.Set(0, i, std::log(39.0f) + 0.001f), logits.Set(1, i, std::log(38.5f));
  }
  Choose(logits, choices);
  EXPECT_EQ(chosen_[0].token, 50);
  EXPECT_EQ(chosen_[1].token, 90);
  EXPECT_NEAR(chosen_[1].logprob, -std::log(39.0f), 1e-6);
  EXPECT_EQ(chosen_[1].likeliest[0].first, 90);
  EXPECT_EQ(chosen_[2].token, 50);
}

// The bits of an answer are its own: alone, among others, in any order, in pieces.
TEST_P(ChooseTokensTest, AChoiceNeverSeesItsNeighbours) {
  const int32_t rows = 5, vocab = 613;
  const Matrix logits = Logits(rows, vocab, 3);
  std::vector<Asked> asked;
  for (int i = 0; i < 70; ++i) asked.push_back(RandomChoice(rows, vocab));
  std::vector<TokenChoice> choices;
  for (Asked& a : asked) choices.push_back(a.Get());
  ChosenTokens all;
  be_->ChooseTokens(all, View(logits), choices);
  be_->Wait();
  std::vector<size_t> order(choices.size());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng_);
  for (size_t begin = 0; begin < order.size();) {
    const size_t end = std::min(order.size(), begin + 1 + static_cast<size_t>(Below(9)));
    std::vector<TokenChoice> part;
    for (size_t i = begin; i < end; ++i) part.push_back(choices[order[i]]);
    Choose(logits, part);
    for (size_t i = begin; i < end; ++i) {
      EXPECT_EQ(Bits(chosen_[i - begin]), Bits(all[order[i]])) << order[i];
    }
    begin = end;
  }
}

// Behind a row come the likeliest logits of all, which are not its own.
TEST_P(ChooseTokensTest, WhatLiesBehindARowIsNotChosen) {
  for (const int32_t vocab : {61, 64, 515}) {
    Matrix alone = Logits(2, vocab, 2), wide = Logits(2, vocab + 40, 2);
    for (int64_t r = 0; r < 2; ++r) {
      for (int64_t i = 0; i < vocab + 40; ++i) wide.Set(r, i, i < vocab ? alone.Get(r, i) : 9.0f);
    }
    std::vector<Asked> asked;
    for (int i = 0; i < 30; ++i) asked.push_back(RandomChoice(2, vocab));
    std::vector<TokenChoice> choices;
    for (Asked& a : asked) choices.push_back(a.Get());
    Choose(alone, choices);
    ChosenTokens of_wide;
    be_->ChooseTokens(of_wide, View(wide).Columns(0, vocab), choices);
    be_->Wait();
    for (size_t i = 0; i < choices.size(); ++i) EXPECT_EQ(Bits(of_wide[i]), Bits(chosen_[i])) << i;
  }
}

TEST_P(ChooseTokensTest, NothingIsChosenFromNothing) {
  be_->ChooseTokens(chosen_, TensorView(nullptr, kF32, {0, 16}), {});
  be_->Wait();
  EXPECT_TRUE(chosen_.all().empty());
}

TEST_P(ChooseTokensTest, MarksTellTheTimeBetweenThem) {
  be_->ReserveMarks(3);
  be_->Mark(0);
  be_->Mark(1);
  const Matrix logits = Logits(1, 5000, 1);
  const TokenChoice c = {.temperature = 1};
  be_->ChooseTokens(chosen_, View(logits), {&c, 1});
  be_->Mark(2);
  be_->Wait();
  EXPECT_GT(be_->NanosBetween(1, 2), be_->NanosBetween(0, 1));
  EXPECT_GE(be_->NanosBetween(0, 1), 0);
}

INSTANTIATE_TEST_SUITE_P(Backends, ChooseTokensTest,
                         ::testing::Combine(::testing::ValuesIn(BackendsOfEveryOp()),
                                            ::testing::Values(kF32, DType::kBFloat16)),
                         OpsTestName);

}  // namespace
}  // namespace sensorium
