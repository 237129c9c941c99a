// The subcommands of `sensorium` that ask a model, here or on a server, and what they print.
//
// Exit codes: 0 it worked; 1 it failed, for the reason in one line on stderr; 2 wrong usage.
// Answers go to stdout and nothing else does: timings, transcripts of questions, progress and
// errors go to stderr.
#pragma once

#include <string>
#include <vector>

#include "sensorium/v1/sensorium.pb.h"

namespace CLI {
class App;
}

namespace sensorium {

// Each registers one subcommand; its callback does all the work and sets `exit_code`, which must
// outlive `app`.
void AddGenerateCommand(CLI::App& app, int& exit_code);
void AddTranscribeCommand(CLI::App& app, int& exit_code);
void AddModelsCommand(CLI::App& app, int& exit_code);
void AddProbeCommand(CLI::App& app, int& exit_code);

// ---- What --json prints: one object without a line break. Pure functions.
//
// `events` are all messages of one call in the order they came. A float is written with the fewest
// digits that read back as the same float; NaN and infinity as null. Only `timing` differs between
// two runs of the same request.

// text, token_ids, logprobs [{token_id, logprob, alternatives}], points [{x, y, label, ordinal}],
// usage, timing, finish_reason ("stop", "length", "stop_string"), model, heard.
std::string GenerateJson(const std::vector<v1::GenerateResponse>& events);

// file, language, text, segments [{id, start, end (seconds), text, tokens, avg_logprob,
// compression_ratio, no_speech_prob, temperature}], usage, timing, model, language_probability,
// duration (seconds).
std::string TranscribeJson(const std::string& file,
                           const std::vector<v1::TranscribeResponse>& events);

// The fields of v1.Model under their names.
std::string ModelJson(const v1::Model& model);

// ---- What people read

// A header and one line a model, in columns; ends with a line break.
std::string ModelsTable(const v1::ListModelsResponse& models);

// One line without a line break: the phases of a request that took time, and its tokens.
std::string TimingLine(const v1::Timing& timing, const v1::Usage& usage);

}  // namespace sensorium
