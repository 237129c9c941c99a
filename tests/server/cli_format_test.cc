// What the command line prints and refuses, without a model.
#include <sys/stat.h>

#include <cmath>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/cli.h"
#include "server/cli_engine.h"
#include "tests/server/run_command.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string Place(const std::string& name) { return testing::TempDir() + "/cli_format_" + name; }

TEST(CliFormatTest, AnAnswerIsOneLineOfJsonInItsFixedOrder) {
  std::vector<v1::GenerateResponse> events(5);
  events[0].mutable_started()->set_model("m");
  events[0].mutable_started()->set_heard("what?");
  v1::Delta& delta = *events[1].mutable_delta();
  delta.set_text("a\n");
  delta.add_token_ids(7);
  v1::TokenLogprob& logprob = *delta.add_logprobs();
  logprob.set_token_id(7);
  logprob.set_logprob(-0.1f);
  logprob.add_alternatives()->set_token_id(8);
  logprob.mutable_alternatives(0)->set_logprob(-INFINITY);
  v1::Point& point = *events[2].mutable_point();
  point.set_x(12.3f);
  point.set_y(4);
  point.set_label("star");
  point.set_ordinal(1);
  events[3].mutable_delta()->add_token_ids(9);
  v1::Finished& finished = *events[4].mutable_finished();
  finished.set_text("a\n");
  finished.set_reason(v1::STOP_STRING);
  finished.mutable_usage()->set_prompt_tokens(3);
  finished.mutable_timing()->set_queued_us(5);
  EXPECT_EQ(
      GenerateJson(events),
      R"({"text":"a\n","token_ids":[7,9],"logprobs":[{"token_id":7,"logprob":-0.1,"alternatives":[)"
      R"({"token_id":8,"logprob":null}]}],"points":[{"x":12.3,"y":4.0,"label":"star","ordinal":1}],)"
      R"("usage":{"prompt_tokens":3,"cached_tokens":0,"image_tokens":0,"completion_tokens":0,)"
      R"("audio_ms":0,"kv_blocks_peak":0},"timing":{"queued_us":5,"encode_us":0,"prefill_us":0,)"
      R"("decode_us":0,"time_to_first_token_us":0,"predicted_us":0},"finish_reason":"stop_string",)"
      R"("model":"m","heard":"what?"})");
}

TEST(CliFormatTest, ATranscriptIsOneLineOfJsonWithSecondsInIt) {
  std::vector<v1::TranscribeResponse> events(3);
  events[0].mutable_started()->set_model("w");
  events[0].mutable_started()->set_language("en");
  events[0].mutable_started()->set_language_probability(0.5f);
  events[0].mutable_started()->set_duration_ms(8250);
  v1::Segment& segment = *events[1].mutable_segment();
  segment.set_start_ms(20);
  segment.set_end_ms(4120);
  segment.set_text(" Hi.");
  segment.add_tokens(5);
  segment.set_avg_logprob(-0.3f);
  segment.set_compression_ratio(1.1f);
  segment.set_no_speech_probability(0.01f);
  events[2].mutable_finished()->set_text(" Hi.");
  events[2].mutable_finished()->set_language("en");
  const auto json = nlohmann::json::parse(TranscribeJson("a.wav", events));
  EXPECT_EQ(json["file"], "a.wav");
  EXPECT_EQ(json["language"], "en");
  EXPECT_EQ(json["duration"], 8.25);
  EXPECT_EQ(json["segments"].dump(),
            R"([{"avg_logprob":-0.3,"compression_ratio":1.1,"end":4.12,"id":0,)"
            R"("no_speech_prob":0.01,"start":0.02,"temperature":0.0,"text":" Hi.","tokens":[5]}])");
  EXPECT_THAT(TranscribeJson("a.wav", events), Not(HasSubstr("\n")));
}

TEST(CliFormatTest, AFileNameThatIsNotUtf8StaysJson) {
  EXPECT_EQ(nlohmann::json::parse(TranscribeJson("\xff.wav", {}))["file"], "\uFFFD.wav");
}

TEST(CliFormatTest, TheShortestNumberReadsBackAsTheSameFloat) {
  for (const float value : {0.1f, -1.17549435e-38f, 16777217.f, 3.4028235e38f, 0.f, 1.f / 3}) {
    EXPECT_EQ(static_cast<float>(Shortest(value)), value);
  }
  EXPECT_EQ(Dump(Shortest(0.1f)), "0.1");
}

TEST(CliFormatTest, ModelsStandInColumns) {
  v1::ListModelsResponse models;
  v1::Model& a = *models.add_models();
  a.set_name("molmo-mini");
  a.set_kind("molmo");
  a.set_architecture("MolmoForCausalLM");
  a.set_dtype("float32");
  a.set_parameters(3'900'000);
  a.set_context_tokens(512);
  a.set_vocab_size(600);
  a.set_text_in(true);
  a.set_image_in(true);
  v1::Model& b = *models.add_models();
  b.set_name("w");
  b.set_parameters(7'200'000'000);
  b.set_audio_in(true);
  b.add_languages("en");
  b.add_languages("es");
  b.set_window_ms(8000);
  EXPECT_EQ(
      ModelsTable(models),
      "NAME        KIND   ARCHITECTURE      DTYPE    PARAMETERS  CONTEXT  VOCABULARY  INPUT       "
      "LANGUAGES  WINDOW\n"
      "molmo-mini  molmo  MolmoForCausalLM  float32  3.9 M       512      600         text,image  "
      "-          -\n"
      "w                                             7.2 B       0        0           audio       "
      "en,es      8 s\n");
  EXPECT_EQ(nlohmann::json::parse(ModelJson(b))["languages"], (std::vector{"en", "es"}));
}

TEST(CliFormatTest, WhatDoesNotGoTogetherIsWrongUsage) {
  const std::pair<std::vector<std::string>, const char*> kWrong[] = {
      {{"generate", "--model", "m"}, "--prompt or --audio"},
      {{"generate", "--model", "m", "--prompt", "p", "--draw", "o.png"}, "--draw needs --image"},
      {{"generate", "--prompt", "p"}, "--model or --server"},
      {{"generate", "--model", "m", "--prompt", "p", "--dtype", "int8"}, "--dtype"},
      {{"generate", "--model", "m", "--prompt", "p", "--cpu-level", "mmx"}, "--cpu-level"},
      {{"generate", "--model", "m", "--prompt", "p", "--max-tokens", "0"}, "--max-tokens"},
      {{"transcribe", "--model", "m"}, "FILE"},
      {{"transcribe", "a.wav"}, "--model or --server"},
      {{"transcribe", "a", "b", "--model", "m", "--format", "srt"}, "one FILE; 2 were given"},
      {{"transcribe", "a", "--model", "m", "--format", "vtt", "--timestamps", "none"},
       "--timestamps segment"},
      {{"transcribe", "a", "--model", "m", "--format", "vtt", "--json"}, "exclude"},
      {{"transcribe", "a", "--model", "m", "--format", "doc"}, "--format"},
      {{"models", "--model", "m", "--server", "h:1"}, "excludes"},
      {{"probe"}, "TARGET"},
      {{"probe", "localhost"}, "'localhost' is not HOST:PORT"},
      {{"models", "--server", "host:0"}, "from 1 to 65535"},
      {{"models", "--server", ":50051"}, "is not HOST:PORT"},
      {{"models", "--server", "127.0.0.1:99999"}, "is not HOST:PORT"},
      {{"models", "--server", "unix:"}, "is not HOST:PORT"},
  };
  for (const auto& [arguments, what] : kWrong) {
    const Outcome outcome = RunCommand(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << what;
    EXPECT_THAT(outcome.err, HasSubstr(what));
    EXPECT_EQ(outcome.out, "") << what;
  }
}

TEST(CliFormatTest, AFailureIsOneLineOnStderrAndExitCodeOne) {
  const Outcome outcome = RunCommand({"generate", "--model", "no-such-model", "--prompt", "p"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, AllOf(StartsWith("sensorium: no model 'no-such-model'"),
                                 HasSubstr("config/models/no-such-model"), EndsWith("\n")));
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
}

TEST(CliFormatTest, HelpNamesEveryOptionAndItsDefault) {
  for (const char* command : {"generate", "transcribe", "models"}) {
    const Outcome outcome = RunCommand({command, "--help"});
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_THAT(outcome.out, AllOf(HasSubstr("--server"), HasSubstr("--threads"),
                                   HasSubstr("default 1024"), HasSubstr("in MiB")));
  }
}

TEST(CliFormatTest, AModelsDirectoryIsFoundByPath) {
  const std::string path = std::string(SENSORIUM_MODELS) + "/molmo-mini";
  EXPECT_EQ(*FindModelDirectory(path), path);
  const auto missing = FindModelDirectory(path + "/nowhere");
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(std::string(missing.status().message()), Not(HasSubstr("config/models/" + path)));
}

TEST(CliFormatTest, AFileIsReadUpToItsLimit) {
  const std::string path = Place("ten");
  std::ofstream(path, std::ios::binary) << std::string("0123\0\n6789", 10);
  EXPECT_EQ(*ReadInputFile(path, 10), std::string("0123\0\n6789", 10));
  const absl::Status big = ReadInputFile(path, 9).status();
  EXPECT_TRUE(absl::IsInvalidArgument(big));
  EXPECT_THAT(std::string(big.message()), AllOf(HasSubstr("10 bytes"), HasSubstr("limit is 9")));
}

TEST(CliFormatTest, AFileThatCannotBeReadIsNamed) {
  std::ofstream(Place("empty")).close();
  const std::tuple<std::string, absl::StatusCode, const char*> kBad[] = {
      {Place("missing"), absl::StatusCode::kNotFound, "No such file"},
      {testing::TempDir(), absl::StatusCode::kInvalidArgument, "is a directory"},
      {Place("empty"), absl::StatusCode::kInvalidArgument, "is empty"},
      {"/dev/zero", absl::StatusCode::kInvalidArgument, "more than 100000 bytes"},
  };
  for (const auto& [path, code, what] : kBad) {
    const absl::Status status = ReadInputFile(path, 100000).status();
    EXPECT_EQ(status.code(), code) << path;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(what)));
  }
}

TEST(CliFormatTest, TextThatIsNotUtf8IsRefusedByItsFlag) {
  EXPECT_TRUE(CheckUtf8("--prompt", "caf\u00e9").ok());
  const absl::Status status = CheckUtf8("--prompt", "caf\xe9");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "--prompt is not valid UTF-8");
}

TEST(CliFormatTest, ABrokenPictureToDrawOnShowsBeforeAModelIsLoaded) {
  std::ofstream(Place("text.png")) << "no picture";
  const Outcome outcome = RunCommand({"generate", "--model", "no-such-model", "--prompt", "p",
                                      "--image", Place("text.png"), "--draw", Place("out.png")});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.err, Not(HasSubstr("no-such-model")));
}

}  // namespace
}  // namespace sensorium
