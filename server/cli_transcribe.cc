// `sensorium transcribe`: recordings to text, lines with times, subtitles or JSON.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/media/audio.h"
#include "server/cli.h"
#include "server/cli_engine.h"
#include "server/progress_bar.h"
#include "server/subtitles.h"

namespace sensorium {

namespace {

struct TranscribeCommandOptions {
  ClientOptions client;
  std::vector<std::string> files;
  std::string model, language, prompt, prefix;
  std::string task = "transcribe", timestamps = "segment", format = "text";
  int beam_size = 0, best_of = 0;
  std::optional<float> temperature;
  uint64_t seed = 0;
  bool no_condition = false, json = false, timing = false;

  bool Subtitles() const { return format == "srt" || format == "vtt"; }
};

// "" when the options go together, else what is wrong with them.
std::string WrongWith(const TranscribeCommandOptions& o) {
  if (o.model.empty() && o.client.server.empty()) return "transcribe needs --model or --server";
  if (o.json && o.Subtitles()) return "--json and --format " + o.format + " exclude each other";
  if (o.Subtitles() && o.files.size() > 1) {
    return absl::StrCat("--format ", o.format, " takes one FILE; ", o.files.size(), " were given");
  }
  if (o.Subtitles() && o.timestamps == "none") {
    return absl::StrCat("--format ", o.format, " needs --timestamps segment");
  }
  return "";
}

absl::StatusOr<v1::TranscribeRequest> MakeRequest(const TranscribeCommandOptions& o,
                                                  const std::string& file) {
  v1::TranscribeRequest request;
  v1::TranscribeOptions& options = *request.mutable_options();
  RETURN_IF_ERROR(CheckUtf8("--language", o.language));
  RETURN_IF_ERROR(CheckUtf8("--prompt", o.prompt));
  RETURN_IF_ERROR(CheckUtf8("--prefix", o.prefix));
  options.set_language(o.language);
  options.set_prompt(o.prompt);
  options.set_prefix(o.prefix);
  options.set_task(o.task == "translate" ? v1::TRANSLATE : v1::TRANSCRIBE);
  options.set_timestamps(o.timestamps == "none" ? v1::NONE : v1::SEGMENT);
  options.set_beam_size(o.beam_size);
  options.set_best_of(o.best_of);
  if (o.temperature) options.add_temperatures(*o.temperature);
  options.set_seed(o.seed);
  options.set_condition_on_previous_text(!o.no_condition);
  ASSIGN_OR_RETURN(*request.mutable_audio(), ReadInputFile(file, AudioLimits().max_bytes));
  return request;
}

// What a file's events add to stdout as they come; JSON waits for the last.
class Transcript {
 public:
  Transcript(const TranscribeCommandOptions& options, const std::string& file)
      : o_(options), file_(file) {}

  std::string On(const v1::TranscribeResponse& event) {
    if (o_.format == "json") {
      events_.push_back(event);
      return event.has_finished() ? TranscribeJson(file_, events_) + "\n" : "";
    }
    if (event.has_started()) return Head();
    if (event.has_segment()) return Segment(event.segment());
    if (event.has_finished() && o_.format == "text" && o_.timestamps == "none") {
      return std::string(Trim(event.finished().text())) + "\n";
    }
    return "";
  }

 private:
  std::string Head() const {
    if (o_.format == "vtt") return VttHeader();
    const bool timed_text = o_.format == "text" && o_.timestamps == "segment";
    return timed_text && o_.files.size() > 1 ? file_ + ":\n" : "";
  }
  std::string Segment(const v1::Segment& s) {
    if (o_.format == "vtt") return VttCue(s.start_ms(), s.end_ms(), s.text());
    if (o_.format == "srt") {
      const std::string cue = SrtCue(cues_ + 1, s.start_ms(), s.end_ms(), s.text());
      if (!cue.empty()) ++cues_;
      return cue;
    }
    if (o_.timestamps == "none") return "";
    return TimedLine(s.start_ms(), s.end_ms(), s.text()) + "\n";
  }

  const TranscribeCommandOptions& o_;
  const std::string& file_;
  int cues_ = 0;
  std::vector<v1::TranscribeResponse> events_;
};

absl::Status TranscribeFile(const TranscribeCommandOptions& o, const OpenedClient& opened,
                            const std::string& file) {
  ASSIGN_OR_RETURN(v1::TranscribeRequest request, MakeRequest(o, file));
  if (!opened.names.empty()) request.set_model(opened.names[0]);
  Transcript transcript(o, file);
  v1::TranscribeResponse::Finished finished;
  ProgressBar bar;
  bool readable = true;
  const auto on_event = [&](const v1::TranscribeResponse& event) {
    if (event.has_finished()) finished = event.finished();
    if (event.has_progress()) {
      bar.Update(file, static_cast<double>(event.progress().done_ms()),
                 static_cast<double>(event.progress().total_ms()));
    }
    if (const std::string out = transcript.On(event); !out.empty()) {
      bar.Clear();
      readable = WriteOut(out);
    }
    return readable;
  };
  const absl::Status status = opened.client->Transcribe(std::move(request), on_event);
  bar.Clear();
  if (!readable) return absl::InternalError("cannot write the transcript to stdout");
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(file, ": ", status.message()));
  }
  if (o.timing) {
    std::fprintf(stderr, "%s\n", TimingLine(finished.timing(), finished.usage()).c_str());
  }
  return absl::OkStatus();
}

// A bad recording does not keep the next ones waiting; a lost server or stdout does.
int Transcribe(TranscribeCommandOptions& o) {
  if (o.json) o.format = "json";
  if (!o.model.empty()) o.client.models = {o.model};
  const absl::StatusOr<OpenedClient> opened = OpenClient(o.client);
  if (!opened.ok()) return Failed(opened.status());
  int exit_code = 0;
  for (const std::string& file : o.files) {
    const absl::Status status = TranscribeFile(o, *opened, file);
    if (status.ok()) continue;
    exit_code = Failed(status);
    if (absl::IsUnavailable(status) || absl::IsInternal(status)) break;
  }
  return exit_code;
}

Json SegmentJson(const v1::Segment& s) {
  return {{"id", s.id()},
          {"start", static_cast<double>(s.start_ms()) / 1000},
          {"end", static_cast<double>(s.end_ms()) / 1000},
          {"text", s.text()},
          {"tokens", std::vector<int32_t>(s.tokens().begin(), s.tokens().end())},
          {"avg_logprob", Shortest(s.avg_logprob())},
          {"compression_ratio", Shortest(s.compression_ratio())},
          {"no_speech_prob", Shortest(s.no_speech_probability())},
          {"temperature", Shortest(s.temperature())}};
}

}  // namespace

std::string TranscribeJson(const std::string& file,
                           const std::vector<v1::TranscribeResponse>& events) {
  Json json = {{"file", file},
               {"language", ""},
               {"text", ""},
               {"segments", Json::array()},
               {"usage", UsageJson({})},
               {"timing", TimingJson({})},
               {"model", ""},
               {"language_probability", 0.0},
               {"duration", 0.0}};
  for (const v1::TranscribeResponse& event : events) {
    if (event.has_started()) {
      json["model"] = event.started().model();
      json["language"] = event.started().language();
      json["language_probability"] = Shortest(event.started().language_probability());
      json["duration"] = static_cast<double>(event.started().duration_ms()) / 1000;
    } else if (event.has_segment()) {
      json["segments"].push_back(SegmentJson(event.segment()));
    } else if (event.has_finished()) {
      json["text"] = event.finished().text();
      json["language"] = event.finished().language();
      json["usage"] = UsageJson(event.finished().usage());
      json["timing"] = TimingJson(event.finished().timing());
    }
  }
  return Dump(json);
}

void AddTranscribeCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<TranscribeCommandOptions>();
  TranscribeCommandOptions& o = *options;
  CLI::App& c = *app.add_subcommand("transcribe", "Turn recordings into text");
  c.add_option("FILE", o.files, "recordings: WAV, FLAC, OGG or MP3, up to 64 MiB and 2 hours each")
      ->required();
  c.add_option("--model", o.model,
               "checkpoint directory or bundled name (whisper-mini); with --server a name of "
               "`sensorium models`, default: the only one that transcribes");
  c.add_option("--language", o.language,
               "code (en) or English name (english) of what is spoken; default: detected");
  c.add_option("--task", o.task, "transcribe, or translate (to English); default transcribe")
      ->check(CLI::IsMember({"transcribe", "translate"}));
  c.add_option("--timestamps", o.timestamps, "segment or none; default segment")
      ->check(CLI::IsMember({"none", "segment"}));
  c.add_option("--beam-size", o.beam_size,
               "beams of a beam search, 1 to 16; needs temperature 0; default 0, off");
  c.add_option("--best-of", o.best_of,
               "samples of which the likeliest is taken, 1 to 16; needs a temperature above 0; "
               "default 0, one sample");
  c.add_option("--temperature", o.temperature, "0 to 10; default 0, always the likeliest token");
  c.add_option("--seed", o.seed, "of the sampling: the same gives the same text; default 0");
  c.add_option("--prompt", o.prompt,
               "text before the recording: names, spelling, style; default none");
  c.add_option("--prefix", o.prefix,
               "how the text of every window begins, for a recording of one; default none");
  c.add_flag("--no-condition-on-previous-text", o.no_condition,
             "each window is heard without the text of those before; default: with it");
  AddClientOptions(c, o.client);
  c.add_option("--format", o.format,
               "text (a line a segment with its times, or a line a file with --timestamps none), "
               "json (one object a line for each file), srt or vtt (subtitles of one file); "
               "default text")
      ->check(CLI::IsMember({"text", "json", "srt", "vtt"}));
  c.add_flag("--json", o.json, "the same as --format json");
  c.add_flag("--timing", o.timing, "print the phases' times in ms to stderr");
  c.callback([options, &exit_code] {
    const std::string wrong = WrongWith(*options);
    exit_code = wrong.empty() ? Transcribe(*options) : WrongUsage(wrong);
  });
}

}  // namespace sensorium
