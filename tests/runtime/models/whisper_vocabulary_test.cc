#include "runtime/models/whisper_vocabulary.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/models/byte_vocabulary.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

struct Files {
  explicit Files(const std::string& dir)
      : config(Read(dir + "/config.json")), generation(Read(dir + "/generation_config.json")) {
    auto read = Tokenizer::FromFile(dir + "/tokenizer.json");
    CHECK(read.ok()) << read.status();
    tokenizer = std::move(*read);
  }
  static Json Read(const std::string& path) {
    std::ifstream file(path);
    CHECK(file.good()) << path;
    return Json::parse(file);
  }
  absl::StatusOr<WhisperVocabulary> Vocabulary() const {
    return WhisperVocabulary::From(config, generation, *tokenizer);
  }
  Json config, generation;
  std::unique_ptr<Tokenizer> tokenizer;
};

Files V3() { return Files(std::string(SENSORIUM_TEST_DATA) + "/whisper-v3"); }
Files En() { return Files(std::string(SENSORIUM_TEST_DATA) + "/whisper-en"); }

TEST(WhisperVocabularyTest, ReadsTheLayoutOfLargeV3) {
  const auto v = V3().Vocabulary();
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_TRUE(v->multilingual);
  EXPECT_EQ(v->eot, 512);
  EXPECT_EQ(v->sot, 513);
  EXPECT_EQ(v->languages.size(), 100u);
  EXPECT_EQ(v->languages.front(), std::pair(std::string("en"), 514));
  EXPECT_EQ(v->languages.back(), std::pair(std::string("yue"), 613));
  EXPECT_EQ(v->translate, 614);
  EXPECT_EQ(v->transcribe, 615);
  EXPECT_EQ(v->sot_lm, 616);
  EXPECT_EQ(v->sot_prev, 617);
  EXPECT_EQ(v->no_speech, 618);
  EXPECT_EQ(v->no_timestamps, 619);
  EXPECT_EQ(v->timestamp_begin, 620);
  EXPECT_EQ(v->num_timestamps, 1501);
  EXPECT_THAT(v->begin_suppress_tokens, ElementsAre(220, 512));
  EXPECT_THAT(v->SotSequence(516, false), ElementsAre(513, 516, 615));
  EXPECT_THAT(v->SotSequence(516, true), ElementsAre(513, 516, 614));
}

TEST(WhisperVocabularyTest, PromptsAnEnglishModelWithNothingButItsStart) {
  const auto v = En().Vocabulary();
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_FALSE(v->multilingual);
  EXPECT_EQ(v->timestamp_begin, 607);
  EXPECT_THAT(v->SotSequence(std::nullopt, false), ElementsAre(501));
}

TEST(WhisperVocabularyTest, CountsTimestampsByTheEncodersPositions) {
  const auto v = Files(std::string(SENSORIUM_MODELS) + "/whisper-mini").Vocabulary();
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->num_timestamps, 401);
  EXPECT_EQ(v->timestamp_begin + v->num_timestamps, v->vocab_size);
  EXPECT_THAT(v->languages, ElementsAre(std::pair("en", 642), std::pair("es", 643)));
}

// The shipped lists were computed by the reference's tokenizer.
TEST(WhisperVocabularyTest, ComputesTheReferencesNonSpeechTokens) {
  for (const Files& files : {V3(), En()}) {
    const auto v = files.Vocabulary();
    ASSERT_TRUE(v.ok()) << v.status();
    EXPECT_EQ(NonSpeechTokens(*v, *files.tokenizer),
              files.generation["suppress_tokens"].get<std::vector<int32_t>>());
  }
}

TEST(WhisperVocabularyTest, DoesWithoutAGenerationConfig) {
  Files files = V3();
  const auto with = files.Vocabulary();
  files.generation = {{"is_multilingual", true}};  // 2121 ids would be too few for the reference
  const auto without = files.Vocabulary();
  ASSERT_TRUE(with.ok() && without.ok()) << without.status();
  EXPECT_EQ(without->languages, with->languages);
  EXPECT_EQ(without->suppress_tokens, with->suppress_tokens);
  EXPECT_EQ(without->begin_suppress_tokens, with->begin_suppress_tokens);
  EXPECT_EQ(without->transcribe, with->transcribe);
  EXPECT_EQ(without->timestamp_begin, with->timestamp_begin);
}

TEST(WhisperVocabularyTest, HonoursAnEmptyListAndComputesANullOne) {
  Files files = V3();
  files.generation["suppress_tokens"] = Json::array();
  EXPECT_THAT(files.Vocabulary()->suppress_tokens, IsEmpty());
  files.generation["suppress_tokens"] = nullptr;
  EXPECT_EQ(files.Vocabulary()->suppress_tokens.size(), 42u);
}

TEST(WhisperVocabularyTest, DoesNotLookAtTheStaleIdsOfTheConfig) {
  Files files = V3();
  files.config["eos_token_id"] = 3;
  files.config["decoder_start_token_id"] = 4;
  files.config["begin_suppress_tokens"] = {220, 511};
  const auto v = files.Vocabulary();
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->eot, 512);
  EXPECT_THAT(v->begin_suppress_tokens, ElementsAre(220, 512));
}

TEST(WhisperVocabularyTest, TakesAListOfOneForAnId) {
  Files files = V3();
  files.generation["eos_token_id"] = {512};
  EXPECT_TRUE(files.Vocabulary().ok());
}

TEST(WhisperVocabularyTest, NamesBothValuesOfAContradiction) {
  const auto message = [](const char* key, const Json& value) {
    Files files = V3();
    files.generation[key] = value;
    const auto v = files.Vocabulary();
    EXPECT_EQ(v.status().code(), absl::StatusCode::kInvalidArgument) << key;
    return std::string(v.status().message());
  };
  EXPECT_THAT(message("eos_token_id", 511), AllOf(HasSubstr("511"), HasSubstr("512")));
  EXPECT_THAT(message("no_timestamps_token_id", 618), AllOf(HasSubstr("618"), HasSubstr("619")));
  EXPECT_THAT(message("task_to_id", {{"translate", 615}, {"transcribe", 614}}),
              AllOf(HasSubstr("615"), HasSubstr("614")));
  EXPECT_THAT(message("lang_to_id", {{"<|de|>", 514}}), AllOf(HasSubstr("514"), HasSubstr("516")));
  EXPECT_THAT(message("lang_to_id", {{"de", 516}}), HasSubstr("'de'"));
  EXPECT_THAT(message("suppress_tokens", {1, 2121}), AllOf(HasSubstr("2121"), HasSubstr("vocab")));
  EXPECT_THAT(message("suppress_tokens", {-1}), HasSubstr("-1"));
  EXPECT_THAT(message("suppress_tokens", "all"), HasSubstr("\"all\""));
  EXPECT_THAT(message("is_multilingual", 1), HasSubstr("is_multilingual"));
  EXPECT_THAT(message("eos_token_id", "x"), HasSubstr("\"x\""));
  EXPECT_THAT(message("eos_token_id", 18446744073709551615u), HasSubstr("18446744073709551615"));
}

TEST(WhisperVocabularyTest, AcceptsAPaddedMatrixAndRefusesOneThatIsTooSmall) {
  Files files = V3();
  files.config["vocab_size"] = 2176;
  ASSERT_TRUE(files.Vocabulary().ok());
  EXPECT_EQ(files.Vocabulary()->num_timestamps, 1501);
  files.config["vocab_size"] = 2100;
  EXPECT_THAT(std::string(files.Vocabulary().status().message()),
              AllOf(HasSubstr("2100"), HasSubstr("2121")));
  files.config.erase("vocab_size");
  EXPECT_THAT(std::string(files.Vocabulary().status().message()),
              HasSubstr("vocab_size is absent"));
}

TEST(WhisperVocabularyTest, NamesATokenThatNeitherFileHas) {
  Json json = ByteTokenizerJson();
  json["added_tokens"].erase(json["added_tokens"].begin() + (kSotPrev - kEot));
  const auto tokenizer = Tokenizer::FromJson(json.dump(), "byte tokenizer");
  ASSERT_TRUE(tokenizer.ok());
  const auto v = WhisperVocabulary::From(ByteConfigJson(), Json(), **tokenizer);
  EXPECT_THAT(std::string(v.status().message()),
              AllOf(HasSubstr("<|startofprev|>"), HasSubstr("prev_sot_token_id")));
  // One file suffices.
  EXPECT_TRUE(
      WhisperVocabulary::From(ByteConfigJson(), {{"prev_sot_token_id", kSotPrev}}, **tokenizer)
          .ok());
}

TEST(WhisperVocabularyTest, KnowsTheOlderNameOfNoSpeech) {
  Json json = ByteTokenizerJson();
  json["added_tokens"][kNoSpeech - kEot]["content"] = "<|nocaptions|>";
  const auto tokenizer = Tokenizer::FromJson(json.dump(), "byte tokenizer");
  const auto v = WhisperVocabulary::From(ByteConfigJson(), Json(), **tokenizer);
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->no_speech, kNoSpeech);
}

TEST(WhisperVocabularyTest, FindsALanguageByCodeNameAndAlias) {
  const auto v = V3().Vocabulary();
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->LanguageId("de"), 516);
  EXPECT_EQ(v->LanguageId("German"), 516);
  EXPECT_EQ(v->LanguageId("DE"), 516);
  EXPECT_EQ(v->LanguageId("flemish"), v->LanguageId("nl"));
  EXPECT_EQ(v->LanguageId("Haitian Creole"), v->LanguageId("ht"));
  EXPECT_EQ(v->LanguageId("mandarin"), v->LanguageId("chinese"));
  EXPECT_EQ(v->LanguageId("cantonese"), 613);
  EXPECT_EQ(v->LanguageId("klingon"), std::nullopt);
  EXPECT_EQ(v->LanguageId(""), std::nullopt);
  EXPECT_EQ(v->LanguageCode(613), "yue");
  EXPECT_EQ(v->LanguageCode(614), "");
  // A name is of no use where the checkpoint has no such token.
  EXPECT_EQ(ByteVocabulary().vocabulary.LanguageId("cantonese"), std::nullopt);
  // All hundred names are there: every language is found by one that is not its code.
  EXPECT_EQ(v->LanguageId("javanese"), v->LanguageId("jw"));
  EXPECT_EQ(v->LanguageId("sundanese"), 612);
}

TEST(WhisperVocabularyTest, LeavesOutOfTheTextWhatIsNotBelowTheLimit) {
  const ByteVocabulary b;
  const std::vector<int32_t> ids = {kTime, 'h', kEnglish, 'i', kTime + 3};
  EXPECT_EQ(DecodeBelow(*b.tokenizer, ids, kEot), "hi");
  EXPECT_EQ(DecodeBelow(*b.tokenizer, ids, kTime), "h<|en|>i");
}

}  // namespace
}  // namespace sensorium
