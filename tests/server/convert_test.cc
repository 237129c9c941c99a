#include "server/convert.h"

#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "runtime/base/status_payload.h"
#include "tests/server/error_details.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::GenerateRequest Question(const std::string& text = "why?") {
  v1::GenerateRequest request;
  v1::Message& message = *request.add_messages();
  message.set_role(v1::USER);
  message.add_parts()->set_text(text);
  return request;
}

v1::TranscribeRequest Recording() {
  v1::TranscribeRequest request;
  request.set_audio("bytes");
  return request;
}

std::string Error(v1::GenerateRequest request) {
  const auto converted = FromProto(std::move(request), {});
  EXPECT_EQ(converted.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(converted.status().message());
}

absl::Status TranscribeError(v1::TranscribeRequest request) {
  return FromProto(std::move(request), {}).status();
}

TEST(ConvertTest, WhatTheClientLeavesOutIsOff) {
  const auto request = FromProto(Question(), {});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->n, 1);
  EXPECT_EQ(request->sampling.temperature, 0);
  EXPECT_EQ(request->sampling.top_p, 1);
  EXPECT_EQ(request->sampling.repetition_penalty, 1);
  EXPECT_EQ(request->messages[0].parts[0].text, "why?");
}

TEST(ConvertTest, EveryFieldOfAGenerateRequestArrives) {
  v1::GenerateRequest in = Question();
  v1::Message& message = *in.mutable_messages(0);
  message.add_parts()->mutable_image()->set_data("png");
  v1::Audio& audio = *message.add_parts()->mutable_audio();
  audio.set_data("wav");
  audio.set_language("es");
  in.set_model("m");
  in.set_max_tokens(7);
  in.add_stop("end");
  in.set_logprobs(3);
  in.set_n(2);
  in.set_priority(-4);
  in.set_echo_token_ids(true);
  v1::Sampling& sampling = *in.mutable_sampling();
  sampling.set_temperature(0.5);
  sampling.set_top_k(9);
  sampling.set_top_p(0.75);
  sampling.set_min_p(0.25);
  sampling.set_repetition_penalty(1.5);
  sampling.set_presence_penalty(-1);
  sampling.set_frequency_penalty(2);
  sampling.set_seed(11);
  (*sampling.mutable_logit_bias())[5] = -100;

  const auto out = FromProto(std::move(in), {.tenant = "t", .deadline = Deadline::max()});
  ASSERT_TRUE(out.ok()) << out.status();
  ASSERT_EQ(out->messages[0].parts.size(), 3u);
  EXPECT_EQ(out->messages[0].parts[1].kind, Part::Kind::kImage);
  EXPECT_EQ(out->messages[0].parts[1].data, "png");
  EXPECT_EQ(out->messages[0].parts[2].kind, Part::Kind::kAudio);
  EXPECT_EQ(out->messages[0].parts[2].data, "wav");
  EXPECT_EQ(out->messages[0].parts[2].language, "es");
  EXPECT_EQ(out->model, "m");
  EXPECT_EQ(out->max_tokens, 7);
  EXPECT_THAT(out->stop, ElementsAre("end"));
  EXPECT_EQ(out->logprobs, 3);
  EXPECT_EQ(out->n, 2);
  EXPECT_EQ(out->priority, -4);
  EXPECT_TRUE(out->echo_token_ids);
  EXPECT_EQ(out->tenant, "t");
  EXPECT_EQ(out->deadline, Deadline::max());
  EXPECT_EQ(out->sampling.temperature, 0.5f);
  EXPECT_EQ(out->sampling.top_k, 9);
  EXPECT_EQ(out->sampling.top_p, 0.75f);
  EXPECT_EQ(out->sampling.min_p, 0.25f);
  EXPECT_EQ(out->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(out->sampling.presence_penalty, -1);
  EXPECT_EQ(out->sampling.frequency_penalty, 2);
  EXPECT_EQ(out->sampling.seed, 11u);
  EXPECT_EQ(out->sampling.logit_bias.at(5), -100);
}

TEST(ConvertTest, ABadGenerateFieldIsNamedWithBothNumbers) {
  EXPECT_EQ(Error({}), "messages is empty");
  v1::GenerateRequest in = Question();
  in.set_max_tokens(-3);
  EXPECT_THAT(Error(in), HasSubstr("max_tokens is -3; allowed are 0 to "));
  in = Question();
  in.set_logprobs(21);
  EXPECT_EQ(Error(in), "logprobs is 21; allowed are 0 to 20");
  in = Question();
  in.set_n(17);
  EXPECT_EQ(Error(in), "n is 17; allowed are 0 to 16");
  in = Question();
  for (int i = 0; i < 17; ++i) in.add_stop("x");
  EXPECT_EQ(Error(in), "stop has 17 strings; the limit is 16");
  in = Question();
  in.add_stop("");
  EXPECT_EQ(Error(in), "stop[0] is empty");
  in = Question();
  in.add_stop(std::string(257, 'x'));
  EXPECT_EQ(Error(in), "stop[0] has 257 bytes; the limit is 256");
  in = Question();
  for (int i = 0; i < 256; ++i) *in.add_messages() = in.messages(0);
  EXPECT_EQ(Error(in), "messages has 257 messages; the limit is 256");
  in = Question();
  for (int i = 0; i < 64; ++i) in.mutable_messages(0)->add_parts()->set_text("x");
  EXPECT_EQ(Error(in), "messages[0].parts has 65 parts; the limit is 64");
  in = Question();
  in.mutable_messages(0)->clear_role();
  EXPECT_EQ(Error(in), "messages[0].role is 0; it must be USER, ASSISTANT or SYSTEM");
  in = Question();
  in.mutable_messages(0)->add_parts();
  EXPECT_EQ(Error(in), "messages[0].parts[1] has neither text nor image nor audio");
  in = Question();
  in.mutable_messages(0)->clear_parts();
  EXPECT_EQ(Error(in), "messages[0].parts is empty");
  in = Question();
  in.mutable_messages(0)->add_parts()->mutable_image();
  EXPECT_EQ(Error(in), "messages[0].parts[1].image.data is empty");
  in = Question(std::string((1 << 20) + 1, 'a'));
  EXPECT_EQ(Error(in), "messages[0].parts[0].text has 1048577 bytes; the limit is 1048576");
  in = Question();
  in.mutable_sampling()->set_top_p(1.5);
  EXPECT_EQ(Error(in), "sampling.top_p is 1.5; allowed are 0 to 1");
  in = Question();
  in.mutable_sampling()->set_min_p(1);
  EXPECT_THAT(Error(in), HasSubstr("sampling.min_p is 1; allowed are 0 to "));
  in = Question();
  in.mutable_sampling()->set_temperature(std::nanf(""));
  EXPECT_THAT(Error(in), HasSubstr("sampling.temperature is nan"));
  in = Question();
  (*in.mutable_sampling()->mutable_logit_bias())[3] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(Error(in), HasSubstr("sampling.logit_bias[3] is inf; allowed are -100 to 100"));
}

TEST(ConvertTest, KnownOptionsThatThisVersionLacksAreNeverIgnored) {
  const auto unimplemented = [](const auto& change) {
    v1::TranscribeRequest in = Recording();
    change(*in.mutable_options());
    return TranscribeError(in).code() == absl::StatusCode::kUnimplemented;
  };
  using Options = v1::TranscribeOptions;
  EXPECT_TRUE(unimplemented([](Options& o) { o.set_timestamps(v1::WORD); }));
  EXPECT_TRUE(unimplemented([](Options& o) { o.set_hotwords("x"); }));
  EXPECT_TRUE(unimplemented([](Options& o) { o.set_vad(true); }));
  EXPECT_TRUE(unimplemented([](Options& o) { o.set_compression_ratio_threshold(2.4); }));
  EXPECT_TRUE(unimplemented([](Options& o) {
    o.add_temperatures(0);
    o.add_temperatures(0.2);
  }));
}

TEST(ConvertTest, ContradictingTranscribeOptionsAreRefused) {
  const auto error = [](const auto& change) {
    v1::TranscribeRequest in = Recording();
    change(*in.mutable_options());
    const absl::Status status = TranscribeError(in);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  using Options = v1::TranscribeOptions;
  EXPECT_EQ(error([](Options& o) {
              o.set_beam_size(5);
              o.add_temperatures(0.5);
            }),
            "options.beam_size is 5 at temperature 0.5; a beam search needs temperature 0");
  EXPECT_EQ(error([](Options& o) {
              o.set_beam_size(1);
              o.add_temperatures(0.5);
            }),
            "options.beam_size is 1 at temperature 0.5; a beam search needs temperature 0");
  EXPECT_EQ(error([](Options& o) { o.set_best_of(5); }),
            "options.best_of is 5 at temperature 0; it needs one above 0");
  EXPECT_EQ(error([](Options& o) { o.set_patience(2); }),
            "options.patience is 2 without a beam_size");
  EXPECT_EQ(error([](Options& o) {
              o.set_clip_start_ms(5000);
              o.set_clip_end_ms(4000);
            }),
            "options.clip_end_ms is 4000; clip_start_ms is 5000");
  EXPECT_EQ(error([](Options& o) { o.set_task(static_cast<v1::Task>(9)); }),
            "options.task is 9, which names no task");
  EXPECT_EQ(error([](Options& o) { o.set_length_penalty(2); }),
            "options.length_penalty is 2; allowed are 0 to 1");
  EXPECT_EQ(TranscribeError({}).message(), "audio is empty");
}

TEST(ConvertTest, EveryFieldOfATranscribeRequestArrives) {
  v1::TranscribeRequest in = Recording();
  in.set_model("w");
  in.set_priority(3);
  v1::TranscribeOptions& o = *in.mutable_options();
  o.set_language("en");
  o.set_task(v1::TRANSLATE);
  o.set_timestamps(v1::NONE);
  o.set_prompt("p");
  o.set_prefix("q");
  o.set_beam_size(4);
  o.set_patience(2);
  o.set_length_penalty(0.5);
  o.set_logprob_threshold(-2);
  o.set_no_speech_threshold(0.25);
  o.set_condition_on_previous_text(false);
  o.set_max_initial_timestamp(0);
  o.add_suppress_tokens(8);
  o.set_suppress_default(false);
  o.set_clip_start_ms(1);
  o.set_clip_end_ms(2);
  o.set_max_tokens_per_window(6);
  o.set_seed(12);
  const auto out = FromProto(std::move(in), {.tenant = "t"});
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->model, "w");
  EXPECT_EQ(out->audio, "bytes");
  EXPECT_EQ(out->priority, 3);
  EXPECT_EQ(out->tenant, "t");
  const TranscribeOptions& options = out->options;
  EXPECT_EQ(options.language, "en");
  EXPECT_EQ(options.task, Task::kTranslate);
  EXPECT_EQ(options.timestamps, Timestamps::kNone);
  EXPECT_EQ(options.prompt, "p");
  EXPECT_EQ(options.prefix, "q");
  EXPECT_EQ(options.beam_size, 4);
  EXPECT_EQ(options.patience, 2);
  EXPECT_EQ(options.length_penalty, 0.5f);
  EXPECT_EQ(options.logprob_threshold, -2.0f);
  EXPECT_EQ(options.no_speech_threshold, 0.25f);
  EXPECT_FALSE(options.condition_on_previous_text);
  EXPECT_EQ(options.max_initial_timestamp, 0.0f);
  EXPECT_THAT(options.suppress_tokens, ElementsAre(8));
  EXPECT_FALSE(options.suppress_default);
  EXPECT_EQ(options.clip_start_ms, 1);
  EXPECT_EQ(options.clip_end_ms, 2);
  EXPECT_EQ(options.max_tokens_per_window, 6);
  EXPECT_EQ(options.seed, 12u);
}

TEST(ConvertTest, EventsBecomeMessagesAndTheEndNone) {
  const auto delta = ToProto(GenerateEvent(
      GenerateDelta{.index = 1,
                    .text = "hi",
                    .token_ids = {4, 5},
                    .logprobs = {{.token_id = 4, .logprob = -1, .alternatives = {{6, -2.0f}}}}}));
  ASSERT_TRUE(delta.has_value());
  EXPECT_EQ(delta->index(), 1);
  EXPECT_EQ(delta->delta().text(), "hi");
  EXPECT_THAT(delta->delta().token_ids(), ElementsAre(4, 5));
  EXPECT_EQ(delta->delta().logprobs(0).alternatives(0).token_id(), 6);
  const auto point = ToProto(
      GenerateEvent(GeneratePoint{.index = 0, .x = 1.5, .y = 2, .label = "star", .ordinal = 3}));
  EXPECT_EQ(point->point().x(), 1.5f);
  EXPECT_EQ(point->point().label(), "star");
  EXPECT_EQ(point->point().ordinal(), 3);
  EXPECT_FALSE(ToProto(GenerateEvent(StreamEnd{})).has_value());
  EXPECT_FALSE(ToProto(TranscribeEvent(StreamEnd{})).has_value());
}

TEST(ConvertTest, DetailsNameTheFieldAndTheTimeToRetry) {
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(StatusDetails(FieldError("sampling.top_p", "is 2"))));
  EXPECT_EQ(details.code(), 3);
  const auto bad =
      Detail<google::rpc::BadRequest>(StatusDetails(FieldError("sampling.top_p", "is 2")));
  ASSERT_TRUE(bad.has_value());
  EXPECT_EQ(bad->field_violations(0).field(), "sampling.top_p");
  EXPECT_EQ(bad->field_violations(0).description(), "sampling.top_p is 2");

  for (const absl::Status& status :
       {absl::ResourceExhaustedError("full"), absl::UnavailableError("draining")}) {
    const auto retry = Detail<google::rpc::RetryInfo>(StatusDetails(status));
    ASSERT_TRUE(retry.has_value());
    EXPECT_GT(retry->retry_delay().seconds(), 0);
  }
}

TEST(ConvertTest, EveryErrorHasAReason) {
  const auto info = [](const absl::Status& status) {
    return Detail<google::rpc::ErrorInfo>(StatusDetails(status)).value();
  };
  EXPECT_EQ(info(absl::NotFoundError("no model")).reason(), "NOT_FOUND");
  EXPECT_EQ(info(absl::NotFoundError("no model")).domain(), "sensorium");
  EXPECT_EQ(info(FieldError("n", "is 99")).reason(), "INVALID_ARGUMENT");
  EXPECT_EQ(info(absl::UnimplementedError("words")).reason(), "UNIMPLEMENTED");
  EXPECT_EQ(info(WithReason(absl::UnavailableError("bye"), "DRAINING")).reason(), "DRAINING");
}

TEST(ConvertTest, WhatNeverFitsIsNotToBeAskedAgain) {
  const absl::Status status = NeverFits("needs 9 blocks; there are 8");
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  const std::string details = StatusDetails(status);
  EXPECT_FALSE(Detail<google::rpc::RetryInfo>(details).has_value());
  EXPECT_EQ(Detail<google::rpc::ErrorInfo>(details)->reason(), "NEVER_FITS");
}

}  // namespace
}  // namespace sensorium
