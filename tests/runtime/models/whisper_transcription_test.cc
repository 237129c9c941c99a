#include "runtime/models/whisper_transcription.h"

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/models/byte_vocabulary.h"

namespace sensorium {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Ids = std::vector<int32_t>;

// Windows of 20 mel frames and 0.2 s: a timestamp is 2 frames, or 0.02 s.
class WhisperTranscriptionTest : public testing::Test {
 protected:
  static WhisperTranscriptionOptions Options(int64_t content_frames) {
    WhisperTranscriptionOptions options;
    options.language_id = kEnglish;
    options.content_frames = content_frames;
    options.window_frames = 20;
    options.window_seconds = 0.2;
    options.text_context = 40;
    return options;
  }
  WhisperTranscription Transcription(const WhisperTranscriptionOptions& options) const {
    return {b_.vocabulary, *b_.tokenizer, options};
  }
  static WhisperWindowResult Said(Ids tokens, float temperature = 0) {
    WhisperWindowResult result;
    result.tokens = std::move(tokens);
    result.temperature = temperature;
    result.avg_logprob = -0.5f;
    result.compression_ratio = 1.25f;
    result.no_speech_prob = 0.125f;
    return result;
  }
  static Ids Concat(std::initializer_list<Ids> parts) {
    Ids all;
    for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
  }
  static Ids Bytes(std::string_view text) { return {text.begin(), text.end()}; }

  const ByteVocabulary b_;
  const Ids kStart = {kSot, kEnglish, kTranscribe};
};

// --- Prompts.

TEST_F(WhisperTranscriptionTest, PromptsWithLanguageAndTask) {
  auto options = Options(100);
  EXPECT_EQ(Transcription(options).NextWindow()->prompt, kStart);
  options.translate = true;
  options.language_id = kGerman;
  EXPECT_THAT(Transcription(options).NextWindow()->prompt, ElementsAre(kSot, kGerman, kTranslate));
  options.timestamps = false;
  EXPECT_THAT(Transcription(options).NextWindow()->prompt,
              ElementsAre(kSot, kGerman, kTranslate, kNoTimestamps));
}

TEST_F(WhisperTranscriptionTest, PromptsAnEnglishModelWithItsStartAlone) {
  const ByteVocabulary english(/*multilingual=*/false);
  auto options = Options(100);
  options.language_id.reset();
  WhisperTranscription t(english.vocabulary, *english.tokenizer, options);
  EXPECT_THAT(t.NextWindow()->prompt, ElementsAre(kSot));
}

TEST_F(WhisperTranscriptionTest, PutsThePromptBeforeAndThePrefixBehindTheStart) {
  auto options = Options(100);
  options.prompt = "\n Ada, Bo ";
  options.prefix = "Dear";
  options.timestamps = false;
  const auto window = Transcription(options).NextWindow();
  EXPECT_EQ(window->prompt,
            Concat({{kSotPrev}, Bytes(" Ada, Bo"), kStart, {kNoTimestamps}, Bytes(" Dear")}));
  EXPECT_EQ(window->sot_index, 9);
}

TEST_F(WhisperTranscriptionTest, ReadsSpecialTokensInAPromptAsText) {
  auto options = Options(100);
  options.prompt = "<|de|>";
  EXPECT_EQ(Transcription(options).NextWindow()->prompt,
            Concat({{kSotPrev}, Bytes(" <|de|>"), kStart}));
}

TEST_F(WhisperTranscriptionTest, APromptOfSpacesIsNone) {
  auto options = Options(100);
  options.prompt = options.prefix = " \n ";
  EXPECT_EQ(Transcription(options).NextWindow()->prompt, kStart);
}

TEST_F(WhisperTranscriptionTest, KeepsTheEndOfALongPrompt) {
  auto options = Options(100);
  options.prompt = "abcdefghijklmnopqrstuvwxyz";
  // Half the context less one: 19.
  EXPECT_EQ(Transcription(options).NextWindow()->prompt,
            Concat({{kSotPrev}, Bytes("hijklmnopqrstuvwxyz"), kStart}));
}

TEST_F(WhisperTranscriptionTest, KeepsOfAPrefixWhatTheSampleLengthLeaves) {
  auto options = Options(100);
  options.prefix = "abcdefghijklmnopqrstuvwxyz";
  options.sample_len = 15;  // of 20
  EXPECT_EQ(Transcription(options).NextWindow()->prompt, Concat({kStart, Bytes("vwxyz")}));
  for (const int32_t sample_len : {0, 20}) {  // the whole half of the context: no limit but its own
    options.sample_len = sample_len;
    EXPECT_EQ(Transcription(options).NextWindow()->prompt,
              Concat({kStart, Bytes("hijklmnopqrstuvwxyz")}));
  }
}

TEST_F(WhisperTranscriptionTest, LeavesRoomForATokenBehindTheLongestPrompt) {
  auto options = Options(100);
  options.prompt = options.prefix = "abcdefghijklmnopqrstuvwxyz";
  options.timestamps = false;
  const auto window = Transcription(options).NextWindow();
  // 1 + 15 + 4 + 19 of 40.
  EXPECT_EQ(window->prompt, Concat({{kSotPrev},
                                    Bytes("lmnopqrstuvwxyz"),
                                    kStart,
                                    {kNoTimestamps},
                                    Bytes("hijklmnopqrstuvwxyz")}));
  EXPECT_EQ(window->prompt.size(), 39u);
  EXPECT_EQ(window->prompt.at(window->sot_index), kSot);
}

// --- Segments, and where the next window begins.

TEST_F(WhisperTranscriptionTest, CutsAtPairsOfTimesAndGoesOnAtTheLast) {
  auto t = Transcription(Options(100));
  ASSERT_TRUE(t.NextWindow());
  const auto segments = t.FinishWindow(
      Said({kTime, ' ', 'a', kTime + 3, kTime + 4, ' ', 'b', kTime + 7, kTime + 7, ' ', 'c'}));
  ASSERT_THAT(segments, SizeIs(2));
  EXPECT_EQ(segments[0].text, " a");
  EXPECT_DOUBLE_EQ(segments[0].start, 0);
  EXPECT_DOUBLE_EQ(segments[0].end, 0.06);
  EXPECT_THAT(segments[0].tokens, ElementsAre(kTime, ' ', 'a', kTime + 3));
  EXPECT_EQ(segments[1].text, " b");
  EXPECT_DOUBLE_EQ(segments[1].start, 0.08);
  EXPECT_DOUBLE_EQ(segments[1].end, 0.14);
  EXPECT_EQ(segments[0].id, 0);
  EXPECT_EQ(segments[1].id, 1);
  // All segments of a window have its scores.
  for (const WhisperSegment& segment : segments) {
    EXPECT_EQ(segment.seek, 0);
    EXPECT_EQ(segment.avg_logprob, -0.5f);
    EXPECT_EQ(segment.compression_ratio, 1.25f);
    EXPECT_EQ(segment.no_speech_prob, 0.125f);
    EXPECT_EQ(segment.temperature, 0.0f);
  }
  // " c" was cut off in the middle: it is heard again.
  const auto next = t.NextWindow();
  EXPECT_EQ(next->seek, 14);
  EXPECT_EQ(next->size, 20);
  const auto later = t.FinishWindow(Said({kTime, ' ', 'c', kTime + 2, kTime + 2}));
  ASSERT_THAT(later, SizeIs(1));
  EXPECT_EQ(later[0].id, 2);
  EXPECT_EQ(later[0].seek, 14);
  EXPECT_DOUBLE_EQ(later[0].start, 0.14);
  EXPECT_DOUBLE_EQ(later[0].end, 0.18);
  EXPECT_EQ(t.seek(), 18);
  EXPECT_EQ(t.Text(), " a b c");
}

TEST_F(WhisperTranscriptionTest, ASingleTimeAtTheEndMeansThatNobodySpeaksBehindIt) {
  auto t = Transcription(Options(100));
  ASSERT_TRUE(t.NextWindow());
  const auto segments = t.FinishWindow(Said({kTime, 'a', kTime + 3, kTime + 3, 'b', kTime + 7}));
  ASSERT_THAT(segments, SizeIs(2));
  EXPECT_EQ(segments[1].text, "b");
  EXPECT_DOUBLE_EQ(segments[1].start, 0.06);
  EXPECT_DOUBLE_EQ(segments[1].end, 0.14);
  EXPECT_EQ(t.seek(), 20);
}

TEST_F(WhisperTranscriptionTest, WithoutAPairThereIsOneSegmentUpToTheLastTime) {
  const auto only = [&](Ids tokens) {
    auto t = Transcription(Options(100));
    t.NextWindow();
    const auto segments = t.FinishWindow(Said(std::move(tokens)));
    EXPECT_THAT(segments, SizeIs(1));
    EXPECT_EQ(t.seek(), 20);
    EXPECT_DOUBLE_EQ(segments.at(0).start, 0);
    return segments.at(0);
  };
  EXPECT_DOUBLE_EQ(only({kTime, 'a', kTime + 6}).end, 0.12);
  // The reference starts such a segment with the window, whatever its first time says.
  EXPECT_DOUBLE_EQ(only({kTime + 2, 'a', kTime + 6}).end, 0.12);
  // 0.00 says nothing about the end.
  EXPECT_DOUBLE_EQ(only({kTime, 'a'}).end, 0.2);
  EXPECT_DOUBLE_EQ(only({'a', 'b'}).end, 0.2);
  EXPECT_THAT(only({kTime, 'a', kTime + 6}).tokens, ElementsAre(kTime, 'a', kTime + 6));
}

TEST_F(WhisperTranscriptionTest, TheLastWindowIsAsLongAsWhatIsLeft) {
  auto t = Transcription(Options(27));
  t.NextWindow();
  t.FinishWindow(Said({'a'}));
  const auto window = t.NextWindow();
  EXPECT_EQ(window->seek, 20);
  EXPECT_EQ(window->size, 7);
  const auto segments = t.FinishWindow(Said({'b'}));
  EXPECT_DOUBLE_EQ(segments.at(0).start, 0.2);
  EXPECT_DOUBLE_EQ(segments.at(0).end, 0.27);
  EXPECT_FALSE(t.NextWindow());
  EXPECT_EQ(t.Text(), "ab");
}

TEST_F(WhisperTranscriptionTest, AnEmptyRecordingHasNoWindow) {
  auto t = Transcription(Options(0));
  EXPECT_FALSE(t.NextWindow());
  EXPECT_EQ(t.Text(), "");
}

TEST_F(WhisperTranscriptionTest, StaysInsideItsClip) {
  auto options = Options(100);
  options.clip_start_frame = 30;
  options.clip_end_frame = 55;
  auto t = Transcription(options);
  auto window = t.NextWindow();
  EXPECT_EQ(window->seek, 30);
  EXPECT_EQ(window->size, 20);
  EXPECT_DOUBLE_EQ(t.FinishWindow(Said({kTime, 'a', kTime + 10})).at(0).start, 0.3);
  window = t.NextWindow();
  EXPECT_EQ(window->seek, 50);
  EXPECT_EQ(window->size, 5);
  t.FinishWindow(Said({'b'}));
  EXPECT_FALSE(t.NextWindow());
  // An end behind the recording's is the recording's.
  options.clip_start_frame = 90;
  options.clip_end_frame = 1000;
  EXPECT_EQ(Transcription(options).NextWindow()->size, 10);
  options.clip_start_frame = 100;
  EXPECT_FALSE(Transcription(options).NextWindow());
}

TEST_F(WhisperTranscriptionTest, SkipsAWindowWithoutSpeech) {
  struct Case {
    std::optional<float> no_speech_threshold, logprob_threshold;
    float no_speech_prob, avg_logprob;
    bool skipped;
  };
  for (const Case& c : {Case{0.6f, -1.0f, 0.7f, -1.5f, true},
                        Case{0.6f, -1.0f, 0.7f, -1.0f, true},   // not above the threshold
                        Case{0.6f, -1.0f, 0.7f, -0.5f, false},  // sure of its words
                        Case{0.6f, -1.0f, 0.6f, -1.5f, false},  // not above the threshold
                        Case{0.6f, std::nullopt, 0.7f, -0.5f, true},
                        Case{std::nullopt, -1.0f, 1.0f, -9.0f, false}}) {
    SCOPED_TRACE(testing::Message() << c.no_speech_prob << " " << c.avg_logprob);
    auto options = Options(30);
    options.no_speech_threshold = c.no_speech_threshold;
    options.logprob_threshold = c.logprob_threshold;
    auto t = Transcription(options);
    t.NextWindow();
    auto result = Said({kTime, 'a', kTime + 3, kTime + 3});
    result.no_speech_prob = c.no_speech_prob;
    result.avg_logprob = c.avg_logprob;
    EXPECT_EQ(t.FinishWindow(result).empty(), c.skipped);
    EXPECT_EQ(t.seek(), c.skipped ? 20 : 6);
    EXPECT_EQ(t.Text(), c.skipped ? "" : "a");
  }
}

TEST_F(WhisperTranscriptionTest, LeavesOutWhatHasNoTextOrNoLength) {
  auto t = Transcription(Options(100));
  t.NextWindow();
  const auto segments = t.FinishWindow(Said({kTime + 1, ' ', kTime + 3, kTime + 3, 'x', kTime + 3,
                                             kTime + 4, 'b', kTime + 7, kTime + 7}));
  ASSERT_THAT(segments, SizeIs(1));
  EXPECT_EQ(segments[0].text, "b");
  EXPECT_EQ(segments[0].id, 2);
  EXPECT_EQ(t.Text(), "b");
  // Nor are they what the next window hears that was said.
  EXPECT_EQ(t.NextWindow()->prompt, Concat({{kSotPrev}, {kTime + 4, 'b', kTime + 7}, kStart}));
}

// --- What a window knows of those before it.

TEST_F(WhisperTranscriptionTest, PromptsWithWhatWasSaidTimesIncluded) {
  auto options = Options(100);
  options.prompt = "Ada";
  auto t = Transcription(options);
  t.NextWindow();
  t.FinishWindow(Said({kTime, 'a', kTime + 3, kTime + 3, 'b', kTime + 5, kTime + 5, 'c'}));
  const auto window = t.NextWindow();
  EXPECT_EQ(
      window->prompt,
      Concat(
          {{kSotPrev}, Bytes(" Ada"), {kTime, 'a', kTime + 3, kTime + 3, 'b', kTime + 5}, kStart}));
  EXPECT_EQ(window->sot_index, 11);
  // The prompt is not part of the text.
  EXPECT_EQ(t.Text(), "ab");
}

TEST_F(WhisperTranscriptionTest, ForgetsAllOfItAfterAHighTemperature) {
  auto options = Options(200);
  options.prompt = "Ada";
  auto t = Transcription(options);
  t.NextWindow();
  t.FinishWindow(Said({'a'}, 0.5f));  // not above a half
  EXPECT_EQ(t.NextWindow()->prompt, Concat({{kSotPrev}, Bytes(" Ada"), {'a'}, kStart}));
  t.FinishWindow(Said({'b'}, 0.6f));
  EXPECT_EQ(t.NextWindow()->prompt, kStart);
  t.FinishWindow(Said({'c'}));
  EXPECT_EQ(t.NextWindow()->prompt, Concat({{kSotPrev}, {'c'}, kStart}));
  EXPECT_EQ(t.Text(), "abc");
}

TEST_F(WhisperTranscriptionTest, ForgetsAfterEveryWindowWhenNotConditioned) {
  auto options = Options(200);
  options.prompt = "Ada";
  options.prefix = "Hm";
  options.condition_on_previous_text = false;
  auto t = Transcription(options);
  EXPECT_EQ(t.NextWindow()->prompt, Concat({{kSotPrev}, Bytes(" Ada"), kStart, Bytes(" Hm")}));
  t.FinishWindow(Said({'a'}));
  EXPECT_EQ(t.NextWindow()->prompt, Concat({kStart, Bytes(" Hm")}));
  t.FinishWindow(Said({'b'}));
  EXPECT_EQ(t.NextWindow()->prompt, Concat({kStart, Bytes(" Hm")}));
}

TEST_F(WhisperTranscriptionTest, ASkippedWindowChangesNoPrompt) {
  auto options = Options(200);
  options.condition_on_previous_text = false;
  options.prompt = "Ada";
  auto t = Transcription(options);
  t.NextWindow();
  auto silence = Said({'x'}, 1.0f);
  silence.no_speech_prob = 0.9f;
  silence.avg_logprob = -3;
  t.FinishWindow(silence);
  EXPECT_EQ(t.NextWindow()->prompt, Concat({{kSotPrev}, Bytes(" Ada"), kStart}));
}

TEST_F(WhisperTranscriptionTest, LongHistoriesAreCutToTheirEnd) {
  auto t = Transcription(Options(1000));
  Ids all;
  for (int i = 0; i < 12; ++i) {
    t.NextWindow();
    const Ids tokens = {kTime, 'a' + i, kTime + 5, kTime + 5};
    t.FinishWindow(Said(tokens));
    all.insert(all.end(), tokens.begin(), tokens.end() - 1);
  }
  EXPECT_EQ(t.NextWindow()->prompt, Concat({{kSotPrev}, Ids(all.end() - 19, all.end()), kStart}));
  EXPECT_EQ(t.seek(), 120);
  EXPECT_EQ(t.Text(), "abcdefghijkl");
}

TEST_F(WhisperTranscriptionTest, ACodePointCutBetweenTokensIsWholeInTheText) {
  auto t = Transcription(Options(100));
  t.NextWindow();
  const auto segments = t.FinishWindow(Said({kTime, 0xC3, 0xA9, kTime + 4}));
  EXPECT_EQ(segments.at(0).text, "é");
  EXPECT_EQ(t.Text(), "é");
}

TEST_F(WhisperTranscriptionTest, ASegmentsTextHasNoSpecialTokensAndTheWholeTextHas) {
  auto t = Transcription(Options(100));
  t.NextWindow();
  const auto segments = t.FinishWindow(Said({kTime, 'a', kGerman, 'b', kTime + 4}));
  EXPECT_EQ(segments.at(0).text, "ab");
  // transcribe() decodes all tokens but times.
  EXPECT_EQ(t.Text(), "a<|de|>b");
}

// --- Whatever a model says, the walk ends and goes forward.

TEST_F(WhisperTranscriptionTest, GoesForwardWithTokensThatNoRuleChecked) {
  auto options = Options(100);
  options.timestamps = false;
  auto t = Transcription(options);
  t.NextWindow();
  EXPECT_THAT(t.FinishWindow(Said({kTime, kTime})), IsEmpty());
  EXPECT_EQ(t.seek(), 20);
  t.NextWindow();
  // The first slice begins with text: it begins where its window does.
  const auto segments = t.FinishWindow(Said({'a', kTime + 4, kTime + 2, 'b', kTime + 6}));
  ASSERT_THAT(segments, SizeIs(2));
  EXPECT_DOUBLE_EQ(segments[0].start, 0.2);
  EXPECT_DOUBLE_EQ(segments[0].end, 0.28);
}

TEST_F(WhisperTranscriptionTest, RandomTokensNeverHoldItUp) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  int windows = 0, segments = 0;
  for (int trial = 0; trial < 200; ++trial) {
    auto options = Options(static_cast<int64_t>(rng() % 200));
    options.clip_start_frame = static_cast<int64_t>(rng() % 40);
    options.condition_on_previous_text = rng() % 2;
    options.timestamps = rng() % 2;
    options.prompt = std::string(rng() % 40, 'p');
    options.prefix = std::string(rng() % 40, 'q');
    auto t = Transcription(options);
    int64_t seek = -1, end = options.clip_start_frame;
    int32_t id = -1;
    while (const auto window = t.NextWindow()) {
      ++windows;
      ASSERT_GT(window->seek, seek);
      ASSERT_GE(window->size, 1);
      ASSERT_LE(window->size, 20);
      ASSERT_LE(window->seek + window->size, options.content_frames);
      ASSERT_LT(window->prompt.size(), 40u);
      ASSERT_EQ(window->prompt.at(window->sot_index), kSot);
      seek = window->seek;
      Ids tokens(rng() % 12);
      for (int32_t& token : tokens) {
        token = rng() % 2 ? kTime + static_cast<int32_t>(rng() % 11)
                          : static_cast<int32_t>(rng() % kTime);
      }
      for (const WhisperSegment& segment : t.FinishWindow(Said(tokens, rng() % 2))) {
        ++segments;
        ASSERT_GT(segment.id, id);
        id = segment.id;
        ASSERT_GE(segment.start, static_cast<double>(seek) * 0.01 - 1e-9);
        ASSERT_LE(segment.end, static_cast<double>(seek) * 0.01 + 0.2 + 1e-9);
      }
      end = t.seek();
    }
    ASSERT_GE(end, options.content_frames);  // a clip may begin behind it
  }
  EXPECT_GT(windows, 500);
  EXPECT_GT(segments, 300);
}

}  // namespace
}  // namespace sensorium
