#include "runtime/tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/base/check.h"
#include "runtime/tokenizer/utf8.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

const std::string kData = SENSORIUM_TEST_DATA;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::unique_ptr<Tokenizer> Load(const std::string& dir) {
  auto tokenizer = Tokenizer::FromFile(dir + "/tokenizer.json");
  CHECK(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

void CheckCases(const Tokenizer& tokenizer, const std::string& file) {
  const auto cases = nlohmann::json::parse(ReadFile(file));
  ASSERT_GT(cases.size(), 5u);
  for (const auto& c : cases) {
    const std::string text = c["text"];
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.Encode(text), ids) << c["text"].dump();
    if (c.contains("decoded")) {
      EXPECT_EQ(tokenizer.Decode(ids), c["decoded"].get<std::string>());
    }
  }
}

class GoldenTokenizerTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTokenizerTest, EqualsTheReferenceOnEveryCase) {
  const std::string dir = kData + "/" + GetParam();
  CheckCases(*Load(dir), dir + "/tokenizer_cases.json");
}
INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenTokenizerTest,
                         testing::Values("molmo-dense", "molmo-postnorm", "molmo-moe", "whisper-v3",
                                         "whisper-en"));

TEST(TokenizerTest, EqualsTheReferenceOnTheRealVocabularies) {
  const std::string root = SENSORIUM_REAL_TOKENIZERS;
  if (!std::filesystem::exists(root)) {
    GTEST_SKIP() << "no real vocabularies at " << root << " (they are too big for the tree)";
  }
  for (const char* name : {"qwen2", "whisper-en", "whisper-multilingual"}) {
    SCOPED_TRACE(name);
    const std::string dir = root + "/" + name;
    CheckCases(*Load(dir), dir + "/cases.json");
  }
}

TEST(TokenizerTest, StreamingNeverEmitsHalfACodePointAndLosesNothing) {
  const auto tokenizer = Load(kData + "/molmo-dense");
  const std::string text = "na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x98\x80 \xE3\x81\x93 end";
  const auto ids = tokenizer->Encode(text);
  StreamDecoder decoder(*tokenizer);
  std::string all;
  for (const int32_t id : ids) {
    std::string piece;
    decoder.Push(id, piece);
    EXPECT_TRUE(IsValidUtf8(piece));
    EXPECT_EQ(piece.find("\xEF\xBF\xBD"), std::string::npos);
    all += piece;
  }
  decoder.Flush(all);
  EXPECT_EQ(all, text);
}

TEST(TokenizerTest, StreamingEqualsDecodeOnRandomIds) {
  const auto tokenizer = Load(kData + "/molmo-dense");
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(random() % 40);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % 260);  // mostly single bytes
    const bool skip = random() % 2;
    StreamDecoder decoder(*tokenizer, skip);
    std::string all;
    for (const int32_t id : ids) {
      const size_t before = all.size();
      decoder.Push(id, all);
      EXPECT_LE(all.size() - before, StreamDecoder::MaxGrowth(tokenizer->longest_token_bytes()));
    }
    decoder.Flush(all);
    EXPECT_EQ(all, tokenizer->Decode(ids, skip));
  }
}

TEST(TokenizerTest, RandomBytesComeBackAsTheirRepairedText) {
  const auto tokenizer = Load(kData + "/molmo-postnorm");  // no normaliser
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::string text(random() % 100, '\0');
    for (char& c : text) c = static_cast<char>(random() % 3 ? ' ' + random() % 95 : random());
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), ReplaceInvalidUtf8(text));
  }
}

TEST(TokenizerTest, NfcComposesBeforeSplitting) {
  const auto tokenizer = Load(kData + "/molmo-dense");
  EXPECT_EQ(tokenizer->Encode("e\xCC\x81t\xC3\xA9"), tokenizer->Encode("\xC3\xA9t\xC3\xA9"));
}

TEST(TokenizerTest, SpecialLiteralsInPlainTextStayTextWhenAsked) {
  const auto tokenizer = Load(kData + "/molmo-dense");
  const int32_t end = *tokenizer->TokenToId("<|endoftext|>");
  EXPECT_TRUE(tokenizer->IsSpecial(end));
  EXPECT_EQ(tokenizer->Encode("a<|endoftext|>").back(), end);
  const auto plain = tokenizer->Encode("a<|endoftext|>", /*parse_special=*/false);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(tokenizer->Decode(plain), "a<|endoftext|>");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{end}, /*skip_special=*/true), "");
}

TEST(TokenizerTest, IdsOutsideTheVocabularyGiveNothing) {
  const auto tokenizer = Load(kData + "/molmo-dense");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{-1, tokenizer->vocab_size(), 1 << 30}), "");
  EXPECT_FALSE(tokenizer->TokenToId("no such token").has_value());
}

// A megabyte of one letter, of spaces and of a special token's first character: near-linear, or this
// test would run for hours.
TEST(TokenizerTest, LongRunsOfOneCharacterAreNotQuadratic) {
  for (const char* name : {"molmo-dense", "molmo-moe", "whisper-v3"}) {
    const auto tokenizer = Load(kData + "/" + name);
    for (const char c : {'a', ' ', '<', '\n', '1'}) {
      const std::string text(1 << 20, c);
      EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << name << " " << c;
    }
  }
}

TEST(TokenizerTest, BadFilesAreErrorsThatSayWhat) {
  EXPECT_THAT(std::string(Tokenizer::FromFile("/nowhere/tokenizer.json").status().message()),
              HasSubstr("/nowhere/tokenizer.json"));
  const std::string good = ReadFile(kData + "/molmo-dense/tokenizer.json");
  const auto status = [](const nlohmann::json& json) {
    return Tokenizer::FromJson(json.dump(), "t.json").status();
  };
  const auto message = [&](const nlohmann::json& j) { return std::string(status(j).message()); };
  auto json = nlohmann::json::parse(good);
  json["pre_tokenizer"] = {{"type", "Metaspace"}};
  EXPECT_THAT(message(json), HasSubstr("Metaspace"));
  json = nlohmann::json::parse(good);
  json["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_THAT(message(json), HasSubstr("Lowercase"));
  json = nlohmann::json::parse(good);
  json["model"]["type"] = "Unigram";
  EXPECT_THAT(message(json), HasSubstr("Unigram"));
  json = nlohmann::json::parse(good);
  json["model"]["merges"].push_back("zz qq9");
  EXPECT_THAT(message(json), HasSubstr("zz"));
  json = nlohmann::json::parse(good);
  json["model"]["vocab"].erase("!");
  EXPECT_THAT(message(json), HasSubstr("byte 33"));
  json = nlohmann::json::parse(good);
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(unclosed";
  EXPECT_THAT(message(json), HasSubstr("offset"));
  for (size_t cut = 0; cut < good.size(); cut += 997) {
    EXPECT_FALSE(Tokenizer::FromJson(good.substr(0, cut), "t.json").ok()) << cut;
  }
}

TEST(TokenizerTest, BothDialectsOfMergesMeanTheSame) {
  const std::string good = ReadFile(kData + "/molmo-dense/tokenizer.json");
  auto json = nlohmann::json::parse(good);
  for (auto& merge : json["model"]["merges"]) {
    if (merge.is_array()) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const auto joined = Tokenizer::FromJson(json.dump(), "t.json");
  ASSERT_TRUE(joined.ok()) << joined.status();
  const std::string text = "The quick brown fox, 1234 jumps over.";
  EXPECT_EQ((*joined)->Encode(text), Load(kData + "/molmo-dense")->Encode(text));
}

}  // namespace
}  // namespace sensorium
