// The engine: requests in, tokens out. One thread of its own owns every model, sequence and KV block
// and runs the step loop: plan -> batch -> forward -> sample -> publish. Media are decoded and text is
// tokenised on a few preparation threads before a request reaches it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/engine/event_queue.h"
#include "runtime/engine/request.h"
#include "runtime/media/audio.h"
#include "runtime/media/image.h"

namespace sensorium {

struct ModelConfig {
  std::string name;  // what clients call it; unique
  std::string path;  // checkpoint directory
};

struct TenantConfig {
  std::string name;  // what the metadata `x-tenant` says
  double weight = 1;  // of the share of device time
  int32_t max_waiting = 0, max_running = 0, max_blocks = 0;  // 0: no limit of its own
};

// Where media become model input: log-mel spectra, patches.
enum class MediaPlace : uint8_t {
  kAuto,    // on the device where it can, else on the host
  kHost,    // on the preparation threads
  kDevice,  // on the device, or the engine does not start
};

struct EngineConfig {
  std::vector<ModelConfig> models;
  std::string speech_model;  // transcribes audio parts of Generate; "": the only whisper there is

  size_t kv_cache_bytes = size_t{256} << 20;  // the arena
  int32_t block_tokens = 16;         // KV block of the model with the widest tokens, multiple of 16
  int32_t max_batch_tokens = 512;    // tokens of one forward pass: prefill is cut into such chunks
  int32_t max_batch_seqs = 64;       // rows that decode in one forward pass
  int32_t max_encode_units = 4;      // image crops encoded in one call: what the workspace holds
  // Predicted time of a step: decodes first, encodes and prefills in what is left. 0: no budget,
  // whatever came first is run in whole.
  int64_t target_step_us = 50'000;
  int64_t starvation_us = 30'000'000;  // who waits longer goes before its tenant's others
  // false: a request is admitted when its worst case is free. true: when what it is expected to need
  // is; requests may then be preempted and computed again.
  bool optimistic_admission = false;
  // Audio windows, and pictures that the device resizes, whose encoding may be stopped half way at
  // once.
  int32_t encoder_slots = 2;
  bool prefix_cache = true;          // full KV blocks of past prompts are kept while there is room
  size_t encoder_cache_bytes = size_t{64} << 20;  // of KV blocks with encoded audio that nobody uses
  // Of each model: features of pictures, in use or cached, in slots as large as its largest picture;
  // of 512 pictures at most.
  size_t image_cache_bytes = size_t{256} << 20;
  bool calibrate = true;             // measure the models at start; else prices begin as a guess
  MediaPlace media = MediaPlace::kAuto;
  std::vector<TenantConfig> tenants;
  int32_t max_tenants = 64;          // told apart at once; the tenants above are among them
  std::string trace_path;            // writes every arrival and plan; "": none
  int32_t max_waiting = 256;         // requests accepted beyond those that run
  int32_t default_max_tokens = 256;
  int32_t max_tokens_limit = 4096;
  int32_t preparation_threads = 2;
  size_t event_queue_limit = 64;     // events a slow reader may lag before its sequence parks
  // A parked sequence keeps its row and its blocks: whose reader takes nothing for so long ends with
  // DEADLINE_EXCEEDED. 0: never.
  std::chrono::milliseconds reader_timeout{60'000};
  size_t max_media_bytes = size_t{1} << 30;  // media of all requests together, files and decoded
  double decode_seconds = 60;  // of CPU time to decode one picture or recording
  ImageLimits image_limits;
  AudioLimits audio_limits;
  // Tests only: cuts each prefill chunk at a random length and shuffles the order within a step.
  uint64_t chaos_seed = 0;  // 0: off
  // Tests only: in the guessed prices, those that measuring, or the first steps, begin with.
  double first_prices = 1;
  // Tests only: called on the preparation thread before a request's decoding; may wait or throw.
  std::function<void()> before_preparation;
};

using GenerateQueue = EventQueue<GenerateEvent>;
using TranscribeQueue = EventQueue<TranscribeEvent>;

struct EngineStats {
  int32_t blocks_total = 0, blocks_used = 0, blocks_reserved = 0;
  int32_t requests_running = 0, requests_waiting = 0;
  size_t media_bytes = 0;
  int64_t steps = 0;
  int64_t preemptions = 0;
  int64_t prefix_hit_blocks = 0, prefix_miss_blocks = 0;   // of prompts' full blocks
  int64_t image_hits = 0, image_misses = 0;    // pictures whose features were there, or not
  int64_t audio_hit_blocks = 0, audio_miss_blocks = 0;     // of encoded audio windows
  bool broken = false;  // the device failed: nothing will be served any more
};

class Engine {
 public:
  using Progress = std::function<void(const std::string& model, size_t done_bytes, size_t total_bytes)>;

  // Loads the models (seconds to minutes: `progress` is called now and then), takes all memory and
  // starts the threads. Errors name the file or the config key.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config,
                                                        std::unique_ptr<Backend> backend,
                                                        Progress progress = nullptr);
  virtual ~Engine() = default;  // cancels what is left and joins

  // Never block. Every queue ends with a StreamEnd, also for a request refused at once.
  virtual std::shared_ptr<GenerateQueue> Generate(GenerateRequest request) = 0;
  virtual std::shared_ptr<TranscribeQueue> Transcribe(TranscribeRequest request) = 0;

  // Decodes media on the calling thread: may take a while. Counts as a request while it does.
  virtual absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& request) const = 0;
  virtual std::vector<ModelInfo> ListModels() const = 0;
  virtual EngineStats Stats() const = 0;
  virtual std::string device() const = 0;

  // Refuses new requests with UNAVAILABLE and returns when all running ones have ended or at the
  // deadline, when the rest is cancelled. Thread-safe.
  virtual void Drain(Deadline deadline) = 0;
};

}  // namespace sensorium
