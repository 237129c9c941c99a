// `sensorium generate`: one question about a text, a picture, a recording; one answer.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/media/audio.h"
#include "runtime/media/draw_points.h"
#include "runtime/media/image.h"
#include "runtime/media/png_writer.h"
#include "server/cli.h"
#include "server/cli_engine.h"

namespace sensorium {

namespace {

struct GenerateOptions {
  ClientOptions client;
  std::string model, speech_model, prompt, image, audio, draw;
  int max_tokens = 0;
  float temperature = 0, top_p = 0;
  int top_k = 0, logprobs = 0;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  bool json = false, timing = false;
};

// "" when the options go together, else what is wrong with them.
std::string WrongWith(const GenerateOptions& o) {
  if (o.prompt.empty() && o.audio.empty()) return "generate needs --prompt or --audio";
  if (!o.draw.empty() && o.image.empty()) return "--draw needs --image, the picture to draw on";
  if (o.model.empty() && o.client.server.empty()) return "generate needs --model or --server";
  return "";
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateOptions& o) {
  v1::GenerateRequest request;
  request.set_max_tokens(o.max_tokens);
  request.set_logprobs(o.logprobs);
  request.set_echo_token_ids(o.json);
  request.mutable_sampling()->set_temperature(o.temperature);
  request.mutable_sampling()->set_top_k(o.top_k);
  request.mutable_sampling()->set_top_p(o.top_p);
  request.mutable_sampling()->set_seed(o.seed);
  for (const std::string& stop : o.stop) {
    RETURN_IF_ERROR(CheckUtf8("--stop", stop));
    request.add_stop(stop);
  }
  v1::Message& message = *request.add_messages();
  message.set_role(v1::USER);
  if (!o.image.empty()) {
    ASSIGN_OR_RETURN(std::string bytes, ReadInputFile(o.image, ImageLimits().max_bytes));
    message.add_parts()->mutable_image()->set_data(std::move(bytes));
  }
  if (!o.prompt.empty()) {
    RETURN_IF_ERROR(CheckUtf8("--prompt", o.prompt));
    message.add_parts()->set_text(o.prompt);
  }
  if (!o.audio.empty()) {
    ASSIGN_OR_RETURN(std::string bytes, ReadInputFile(o.audio, AudioLimits().max_bytes));
    message.add_parts()->mutable_audio()->set_data(std::move(bytes));
  }
  return request;
}

absl::StatusOr<OpenedClient> Open(GenerateOptions& o) {
  if (!o.model.empty()) o.client.models = {o.model};
  if (!o.client.server.empty()) {
    o.client.speech_model = o.speech_model;
  } else if (!o.audio.empty()) {
    if (!o.speech_model.empty()) {
      o.client.speech_model = o.speech_model;
    } else if (FindModelDirectory("whisper-mini").ok()) {
      o.client.speech_model = "whisper-mini";
    } else {
      return absl::InvalidArgumentError(
          "--audio in process needs --speech-model: the bundled whisper-mini is not here");
    }
  }
  return OpenClient(o.client);
}

absl::Status DrawAnswer(RgbImage image, const std::vector<v1::GenerateResponse>& events,
                        const std::string& path) {
  std::vector<MarkedPoint> marks;
  for (const v1::GenerateResponse& event : events) {
    if (!event.has_point()) continue;
    marks.push_back({event.point().x(), event.point().y(), event.point().ordinal()});
  }
  if (marks.empty()) PrintError("the answer has no points; the picture is written without marks");
  DrawPoints(image, marks);
  ASSIGN_OR_RETURN(const std::string png, EncodePng(image));
  FILE* file = std::fopen(path.c_str(), "wb");
  bool written = file && std::fwrite(png.data(), 1, png.size(), file) == png.size();
  if (file) written = std::fclose(file) == 0 && written;
  if (!written) return absl::InternalError(absl::StrCat("cannot write '", path, "'"));
  return absl::OkStatus();
}

absl::Status Generate(GenerateOptions& o) {
  ASSIGN_OR_RETURN(v1::GenerateRequest request, MakeRequest(o));
  RgbImage picture;  // for --draw; a broken one shows before any model is loaded
  if (!o.draw.empty()) {
    const std::string& data = request.messages(0).parts(0).image().data();
    ASSIGN_OR_RETURN(
        picture,
        DecodeImage({reinterpret_cast<const uint8_t*>(data.data()), data.size()}, ImageLimits()));
  }
  ASSIGN_OR_RETURN(OpenedClient opened, Open(o));
  if (!opened.names.empty()) request.set_model(opened.names[0]);

  std::vector<v1::GenerateResponse> events;
  bool readable = true, began = false;
  const auto on_event = [&](const v1::GenerateResponse& event) {
    events.push_back(event);
    if (o.json) return true;
    if (!event.started().heard().empty()) {
      std::fprintf(stderr, "heard: %s\n", event.started().heard().c_str());
    }
    if (!event.delta().text().empty()) {
      began = true;
      readable = WriteOut(event.delta().text());
    }
    return readable;
  };
  const absl::Status status = opened.client->Generate(std::move(request), on_event);
  if (!o.json && readable && (began || status.ok())) readable = WriteOut("\n");
  if (readable) RETURN_IF_ERROR(status);
  if (o.json && readable) readable = WriteOut(GenerateJson(events) + "\n");
  if (!readable) return absl::InternalError("cannot write the answer to stdout");

  if (o.timing && !events.empty()) {
    const v1::Finished& finished = events.back().finished();
    std::fprintf(stderr, "%s\n", TimingLine(finished.timing(), finished.usage()).c_str());
  }
  if (!o.draw.empty()) RETURN_IF_ERROR(DrawAnswer(std::move(picture), events, o.draw));
  return absl::OkStatus();
}

Json LogprobJson(const v1::TokenLogprob& token) {
  Json alternatives = Json::array();
  for (const auto& a : token.alternatives()) {
    alternatives.push_back({{"token_id", a.token_id()}, {"logprob", Shortest(a.logprob())}});
  }
  return {{"token_id", token.token_id()},
          {"logprob", Shortest(token.logprob())},
          {"alternatives", std::move(alternatives)}};
}

}  // namespace

std::string GenerateJson(const std::vector<v1::GenerateResponse>& events) {
  Json json = {{"text", ""},
               {"token_ids", Json::array()},
               {"logprobs", Json::array()},
               {"points", Json::array()},
               {"usage", UsageJson({})},
               {"timing", TimingJson({})},
               {"finish_reason", ""},
               {"model", ""},
               {"heard", ""}};
  for (const v1::GenerateResponse& event : events) {
    if (event.has_started()) {
      json["model"] = event.started().model();
      json["heard"] = event.started().heard();
    } else if (event.has_delta()) {
      for (const int32_t id : event.delta().token_ids()) json["token_ids"].push_back(id);
      for (const auto& token : event.delta().logprobs()) {
        json["logprobs"].push_back(LogprobJson(token));
      }
    } else if (event.has_point()) {
      const v1::Point& point = event.point();
      json["points"].push_back({{"x", Shortest(point.x())},
                                {"y", Shortest(point.y())},
                                {"label", point.label()},
                                {"ordinal", point.ordinal()}});
    } else if (event.has_finished()) {
      json["text"] = event.finished().text();
      json["usage"] = UsageJson(event.finished().usage());
      json["timing"] = TimingJson(event.finished().timing());
      json["finish_reason"] =
          absl::AsciiStrToLower(v1::FinishReason_Name(event.finished().reason()));
    }
  }
  return Dump(json);
}

void AddGenerateCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  GenerateOptions& o = *options;
  CLI::App& c = *app.add_subcommand("generate", "Ask a model about a text, a picture, a recording");
  c.add_option("--model", o.model,
               "checkpoint directory or bundled name (molmo-mini); with --server a name of "
               "`sensorium models`, default: the only one that generates");
  c.add_option("--prompt", o.prompt, "the question, UTF-8; may be left out with --audio");
  c.add_option("--image", o.image, "picture file: PNG, JPEG or WebP, up to 32 MiB");
  c.add_option("--audio", o.audio,
               "spoken question: WAV, FLAC, OGG or MP3, up to 64 MiB; asked after --prompt");
  c.add_option("--speech-model", o.speech_model,
               "in process: directory or bundled name of what hears --audio; default whisper-mini");
  c.add_option("--max-tokens", o.max_tokens, "tokens of the answer at most; default 256")
      ->check(CLI::PositiveNumber);
  c.add_option("--temperature", o.temperature, "0 to 10; default 0, always the likeliest token");
  c.add_option("--top-k", o.top_k, "sample among the k likeliest tokens; default 0, off");
  c.add_option("--top-p", o.top_p,
               "sample among the likeliest tokens of this total probability, 0 to 1; default 0, "
               "off");
  c.add_option("--seed", o.seed, "of the sampling: the same gives the same answer; default 0");
  c.add_option("--stop", o.stop, "the answer ends before this text; may be given up to 16 times")
      ->allow_extra_args(false);
  c.add_option("--logprobs", o.logprobs,
               "alternatives per token in --json, 0 to 20; default 0, the chosen token's alone");
  AddClientOptions(c, o.client);
  c.add_flag("--json", o.json,
             "print one JSON object on one line: text, token_ids, logprobs, points, usage, timing");
  c.add_option("--draw", o.draw,
               "write the picture with the answer's points as numbered marks to this PNG file");
  c.add_flag("--timing", o.timing, "print the phases' times in ms to stderr");
  c.callback([options, &exit_code] {
    if (const std::string wrong = WrongWith(*options); !wrong.empty()) {
      exit_code = WrongUsage(wrong);
      return;
    }
    if (const absl::Status status = Generate(*options); !status.ok()) exit_code = Failed(status);
  });
}

}  // namespace sensorium
