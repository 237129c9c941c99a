// What a client asks and what it gets back, as plain structs: the engine's side of the wire contract
// (proto/sensorium/v1). Text is UTF-8, media are undecoded file bytes, times are what the unit says.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "runtime/sampling/sampling_params.h"

namespace sensorium {

using Deadline = std::chrono::steady_clock::time_point;

// ---- Generate -------------------------------------------------------------------------------------

enum class Role : uint8_t { kUser, kAssistant, kSystem };

struct Part {
  enum class Kind : uint8_t { kText, kImage, kAudio };
  Kind kind = Kind::kText;
  std::string text;      // kText
  std::string data;      // kImage, kAudio: the file's bytes
  std::string language;  // kAudio: "" detects
};

struct Message {
  Role role = Role::kUser;
  std::vector<Part> parts;
};

struct GenerateRequest {
  std::string model;  // "" when the server has one model that generates
  std::vector<Message> messages;
  int32_t max_tokens = 0;  // 0: the config's default
  SamplingParams sampling;
  std::vector<std::string> stop;
  int32_t logprobs = 0;  // alternatives per token, 0..20
  int32_t n = 1;         // answers
  int32_t priority = 0;
  bool echo_token_ids = false;  // prompt ids in Started, ids in Delta
  std::string tenant;
  std::optional<Deadline> deadline;
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t image_tokens = 0;
  int32_t completion_tokens = 0;
  int64_t audio_ms = 0;
  int32_t kv_blocks_peak = 0;
  // What it cost: predicted time of the device at each of its steps, and KV blocks set aside for it
  // times how long.
  int64_t encode_device_us = 0, prefill_device_us = 0, decode_device_us = 0;
  int64_t kv_block_ms = 0;  // blocks x milliseconds
};

struct Timing {
  int64_t queued_us = 0;
  int64_t encode_us = 0;
  int64_t prefill_us = 0;
  int64_t decode_us = 0;
  int64_t time_to_first_token_us = 0;
  int64_t predicted_us = 0;
};

enum class FinishReason : uint8_t { kStop, kLength, kStopString, kCancelled, kDeadline };

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;  // natural log, of the distribution before temperature and filters
  std::vector<std::pair<int32_t, float>> alternatives;  // highest first, `logprobs` of them
};

struct GenerateStarted {
  std::string request_id;
  std::string model;
  int32_t prompt_tokens = 0;
  int32_t image_tokens = 0;
  int32_t cached_tokens = 0;
  std::string heard;                     // transcript of the spoken parts
  std::vector<int32_t> prompt_token_ids;  // when echo_token_ids
};
struct GenerateDelta {
  int32_t index = 0;               // of n
  std::string text;                // whole code points only
  std::vector<int32_t> token_ids;  // when echo_token_ids
  std::vector<TokenLogprob> logprobs;
};
struct GeneratePoint {
  int32_t index = 0;
  float x = 0, y = 0;  // pixels of the original image
  std::string label;
  int32_t ordinal = 0;  // from 1, in order of appearance
};
struct GenerateFinished {
  int32_t index = 0;
  FinishReason reason = FinishReason::kStop;
  std::string text;
  Usage usage;
  Timing timing;
};
// Last event of every stream: OK, or why it ended early. Nothing follows.
struct StreamEnd {
  absl::Status status;
  std::optional<Usage> usage = {};  // of a request that ended early: what it had come to
};
using GenerateEvent =
    std::variant<GenerateStarted, GenerateDelta, GeneratePoint, GenerateFinished, StreamEnd>;

// ---- Transcribe -----------------------------------------------------------------------------------

enum class Task : uint8_t { kTranscribe, kTranslate };
enum class Timestamps : uint8_t { kNone, kSegment, kWord };

struct TranscribeOptions {
  std::string language;  // code or English name; "" detects
  Task task = Task::kTranscribe;
  Timestamps timestamps = Timestamps::kSegment;
  std::string prompt;
  std::string prefix;
  int32_t beam_size = 0;  // 0: greedy or sampled
  int32_t best_of = 0;    // 0: one; needs a temperature
  float patience = 0;     // 0: 1.0
  std::optional<float> length_penalty;
  std::vector<float> temperatures;  // empty: {0}
  uint64_t seed = 0;
  bool condition_on_previous_text = true;
  std::optional<float> no_speech_threshold;  // default 0.6
  std::optional<float> logprob_threshold;    // default -1.0
  std::optional<float> max_initial_timestamp;  // seconds, default 1.0; 0: no cap
  std::vector<int32_t> suppress_tokens;
  bool suppress_default = true;  // the model's own list as well
  int64_t clip_start_ms = 0;
  int64_t clip_end_ms = 0;             // 0: to the end
  int32_t max_tokens_per_window = 0;   // 0: half the text context
};

struct TranscribeRequest {
  std::string model;  // "" when the server has one model that transcribes
  std::string audio;  // file bytes
  TranscribeOptions options;
  int32_t priority = 0;
  std::string tenant;
  std::optional<Deadline> deadline;
};

struct TranscribeStarted {
  std::string request_id;
  std::string model;
  int64_t duration_ms = 0;
  std::string language;  // code
  float language_probability = 0;  // 1 when it was given
};
struct TranscribeSegment {
  int32_t id = 0;
  int64_t start_ms = 0, end_ms = 0;
  std::string text;
  std::vector<int32_t> tokens;
  float avg_logprob = 0, compression_ratio = 0, no_speech_probability = 0, temperature = 0;
};
struct TranscribeProgress {  // after every window; not on the wire
  int64_t done_ms = 0, total_ms = 0;
};
struct TranscribeFinished {
  std::string text;
  std::string language;
  Usage usage;
  Timing timing;
};
using TranscribeEvent = std::variant<TranscribeStarted, TranscribeSegment, TranscribeProgress,
                                     TranscribeFinished, StreamEnd>;

// ---- The others -----------------------------------------------------------------------------------

struct TokenizeRequest {
  std::string model;
  std::string text;
  std::string image;  // file bytes: what it costs in tokens
  std::string audio;  // file bytes: how long it is, how many windows
  bool chat = false;  // wrap `text` (and image) as one user turn
  std::string tenant;
  std::optional<Deadline> deadline;
  std::function<bool()> cancelled;  // nobody waits for it any more; may be empty
};
struct TokenizeResult {
  std::vector<int32_t> token_ids;
  std::vector<std::string> tokens;  // each id's text, U+FFFD where it is not whole
  int32_t image_tokens = 0;
  int32_t image_crops = 0;
  int64_t audio_ms = 0;
  int32_t audio_windows = 0;
};

struct ModelInfo {
  std::string name;
  std::string kind;          // "molmo", "whisper"
  std::string architecture;  // from config.json
  std::string dtype;
  int64_t parameters = 0;
  int32_t context_tokens = 0;
  int32_t vocab_size = 0;
  bool text_in = false, image_in = false, audio_in = false;
  std::vector<std::string> languages;  // whisper
  int64_t window_ms = 0;               // whisper
};

}  // namespace sensorium
