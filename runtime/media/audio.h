// Recordings from strangers: file bytes -> 16 kHz mono float32, in bounded memory.
// Whatever libsndfile reads: WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, ... Pure functions:
// thread-safe, no globals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/stop.h"

namespace sensorium {

inline constexpr int kAudioSampleRate = 16000;

struct AudioLimits {
  size_t max_bytes = 64 << 20;  // of the file
  double max_seconds = 7200;    // of what it holds: 13 MB of Opus can be 10 hours
  int32_t max_channels = 8;
  int32_t min_rate = 4000;  // Hz
  int32_t max_rate = 384000;
};

// Returns [samples] in [-1, 1], the mean of all channels, at kAudioSampleRate. 16-bit PCM at 16 kHz
// in one channel comes out exactly as int16 / 32768; another rate goes through soxr (HQ), so that
// it has round(frames * 16000 / rate) samples. The file's own frame count is never trusted: what is
// there is decoded, and max_seconds is checked block by block, as it comes.
// INVALID_ARGUMENT: not audio, no samples, samples that are no number, or over a limit (the message
// has both numbers). CANCELLED: `stop` said so; it is asked before every 4096 frames.
//
// `take_memory` is told how many bytes of samples there will be at worst before they are allocated
// (while a buffer is moved to a larger one, both count) and again what is left after; its error
// ends the decoding. Empty: take what is needed.
using TakeMemory = std::function<absl::Status(size_t bytes)>;
absl::StatusOr<std::vector<float>> DecodeAudio(std::span<const uint8_t> bytes,
                                               const AudioLimits& limits, const Stop& stop = {},
                                               const TakeMemory& take_memory = {});

}  // namespace sensorium
