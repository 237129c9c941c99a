#include "runtime/media/audio.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "sndfile.h"
#include "soxr.h"

namespace sensorium {
namespace {

constexpr int64_t kBlockFrames = 4096;  // decoded at a time, so memory does not follow the header

// libsndfile's view of the bytes: a read-only file in memory.
struct MemoryFile {
  std::span<const uint8_t> bytes;
  sf_count_t at = 0;

  sf_count_t size() const { return static_cast<sf_count_t>(bytes.size()); }
};

sf_count_t FileSize(void* user) { return static_cast<MemoryFile*>(user)->size(); }

sf_count_t FileTell(void* user) { return static_cast<MemoryFile*>(user)->at; }

// Headers that lie make the library seek anywhere; the position stays inside the file.
sf_count_t FileSeek(sf_count_t offset, int whence, void* user) {
  auto& file = *static_cast<MemoryFile*>(user);
  const sf_count_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? file.at : file.size();
  sf_count_t target = 0;
  if (__builtin_add_overflow(base, offset, &target)) return -1;
  file.at = std::clamp<sf_count_t>(target, 0, file.size());
  return file.at;
}

sf_count_t FileRead(void* to, sf_count_t count, void* user) {
  auto& file = *static_cast<MemoryFile*>(user);
  const sf_count_t n = std::clamp<sf_count_t>(count, 0, file.size() - file.at);
  if (n > 0) std::memcpy(to, file.bytes.data() + file.at, n);
  file.at += n;
  return n;
}

sf_count_t FileWrite(const void*, sf_count_t, void*) { return 0; }

struct CloseFile {
  void operator()(SNDFILE* file) const { sf_close(file); }
};
struct DeleteResampler {
  void operator()(soxr* resampler) const { soxr_delete(resampler); }
};

// The samples so far. A vector left to itself would double unseen; here each growth is asked for
// first. A header's frame count is a hint for the first size, so that an honest file is never moved.
class Samples {
 public:
  explicit Samples(const TakeMemory& take) : take_(take) {}

  absl::Status Reserve(size_t samples) {
    if (samples <= out_.capacity()) return absl::OkStatus();
    if (take_) RETURN_IF_ERROR(take_(sizeof(float) * (out_.capacity() + samples)));
    out_.reserve(samples);
    return take_ ? take_(sizeof(float) * out_.capacity()) : absl::OkStatus();
  }
  absl::Status Append(std::span<const float> block) {
    const size_t size = out_.size() + block.size();
    if (size > out_.capacity()) RETURN_IF_ERROR(Reserve(std::max(size, 2 * out_.capacity())));
    out_.insert(out_.end(), block.begin(), block.end());
    return absl::OkStatus();
  }
  std::vector<float>& values() { return out_; }

 private:
  const TakeMemory& take_;
  std::vector<float> out_;
};

// More samples at 16 kHz for each byte of a file than even Opus at 6 kbit/s has: beyond that, a
// frame count is not believed before the frames are there.
constexpr double kMaxSamplesPerByte = 64;

// Appends mono blocks of one rate to `out` at kAudioSampleRate.
class Resampler {
 public:
  // nullptr inside when the rates agree: the samples pass untouched.
  static absl::StatusOr<Resampler> Create(int32_t rate) {
    Resampler r;
    if (rate == kAudioSampleRate) return r;
    soxr_error_t error = nullptr;
    const soxr_io_spec_t io = soxr_io_spec(SOXR_FLOAT32_I, SOXR_FLOAT32_I);
    const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    const soxr_runtime_spec_t runtime = soxr_runtime_spec(1);  // threads are the caller's business
    r.soxr_.reset(soxr_create(rate, kAudioSampleRate, 1, &error, &io, &quality, &runtime));
    if (r.soxr_ == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot resample from ", rate, " Hz to ",
                                                       kAudioSampleRate,
                                                       " Hz: ", error ? error : "no memory"));
    }
    return r;
  }

  absl::Status Push(std::span<const float> block, Samples& out) {
    if (soxr_ == nullptr) return out.Append(block);
    while (!block.empty()) {
      size_t used = 0;
      RETURN_IF_ERROR(Process(block.data(), block.size(), &used, out));
      block = block.subspan(used);
    }
    return absl::OkStatus();
  }

  // What the filter still holds: without it the end of the recording would be missing.
  absl::Status Flush(Samples& out) {
    if (soxr_ == nullptr) return absl::OkStatus();
    for (size_t before = out.values().size() + 1; before != out.values().size();) {
      before = out.values().size();
      size_t used = 0;
      RETURN_IF_ERROR(Process(nullptr, 0, &used, out));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Process(const float* in, size_t size, size_t* used, Samples& out) {
    std::array<float, kBlockFrames> buffer;
    size_t made = 0;
    const soxr_error_t error =
        soxr_process(soxr_.get(), in, size, used, buffer.data(), buffer.size(), &made);
    if (error != nullptr) return absl::InternalError(absl::StrCat("resampling failed: ", error));
    if (size > 0 && *used == 0 && made == 0) return absl::InternalError("resampling stands still");
    return out.Append(std::span(buffer).first(made));
  }

  std::unique_ptr<soxr, DeleteResampler> soxr_;
};

// Checks against the limits what the header says; its frame count is not among it.
absl::Status CheckFormat(const SF_INFO& info, const AudioLimits& limits) {
  if (info.channels < 1 || info.channels > limits.max_channels) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the recording has ", info.channels, " channels; the limit is ", limits.max_channels));
  }
  if (info.samplerate < limits.min_rate || info.samplerate > limits.max_rate) {
    return absl::InvalidArgumentError(
        absl::StrCat("the recording's sample rate is ", info.samplerate, " Hz; the limits are ",
                     limits.min_rate, " and ", limits.max_rate, " Hz"));
  }
  return absl::OkStatus();
}

// Float files may hold anything finite. Clipping waits for the end, so what overshoots full scale
// is resampled as it is; but this far above it a sum over a filter stays far from infinity.
constexpr float kLoudest = 1e6f;

// interleaved [frames, channels] -> mono [frames], in place: the mean, as ffmpeg's down-mix of
// stereo. Returns the first frame with a NaN or an infinity; `frames` when there is none.
int64_t DownMix(std::span<float> block, int64_t frames, int32_t channels) {
  for (int64_t i = 0; i < frames; ++i) {
    float sum = 0;
    for (int32_t c = 0; c < channels; ++c) {
      const float v = block[i * channels + c];
      if (!std::isfinite(v)) return i;
      sum += std::clamp(v, -kLoudest, kLoudest);
    }
    block[i] = channels == 1 ? sum : sum / static_cast<float>(channels);
  }
  return frames;
}

}  // namespace

absl::StatusOr<std::vector<float>> DecodeAudio(std::span<const uint8_t> bytes,
                                               const AudioLimits& limits, const Stop& stop,
                                               const TakeMemory& take_memory) {
  if (bytes.empty()) return absl::InvalidArgumentError("the recording is empty: 0 bytes");
  if (bytes.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the recording's file has ", bytes.size(),
                                                   " bytes; the limit is ", limits.max_bytes));
  }
  MemoryFile memory{bytes};
  SF_VIRTUAL_IO io = {FileSize, FileSeek, FileRead, FileWrite, FileTell};
  SF_INFO info = {};
  const std::unique_ptr<SNDFILE, CloseFile> file(sf_open_virtual(&io, SFM_READ, &info, &memory));
  if (file == nullptr) {
    // The library keeps why in a global that threads share, so its words might be another's.
    return absl::InvalidArgumentError(absl::StrCat(
        "the recording (", bytes.size(),
        " bytes) cannot be read as audio: its format is unknown or its header damaged"));
  }
  RETURN_IF_ERROR(CheckFormat(info, limits));
  ASSIGN_OR_RETURN(Resampler resampler, Resampler::Create(info.samplerate));

  Samples out(take_memory);
  const double said = static_cast<double>(std::max<sf_count_t>(info.frames, 0)) *
                      kAudioSampleRate / info.samplerate;
  const double believed =
      std::min({said, limits.max_seconds * kAudioSampleRate,
                kMaxSamplesPerByte * static_cast<double>(bytes.size())});
  RETURN_IF_ERROR(out.Reserve(static_cast<size_t>(believed) + kBlockFrames));
  std::vector<float> block(kBlockFrames * info.channels);  // [frames, channels]
  const double max_frames = limits.max_seconds * info.samplerate;
  for (int64_t total = 0;;) {
    if (Stopped(stop)) return StoppedError();
    const int64_t frames = sf_readf_float(file.get(), block.data(), kBlockFrames);
    if (frames <= 0) break;
    total += frames;
    if (static_cast<double>(total) > max_frames) {
      return absl::InvalidArgumentError(
          absl::StrCat("the recording has ", static_cast<double>(total) / info.samplerate,
                       " seconds or more; the limit is ", limits.max_seconds));
    }
    if (const int64_t good = DownMix(block, frames, info.channels); good < frames) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the recording has a sample that is no finite number, in frame ", total - frames + good));
    }
    RETURN_IF_ERROR(resampler.Push(std::span(block).first(frames), out));
  }
  if (sf_error(file.get()) != SF_ERR_NO_ERROR) {
    return absl::InvalidArgumentError(
        absl::StrCat("the recording is damaged: ", sf_strerror(file.get())));
  }
  RETURN_IF_ERROR(resampler.Flush(out));
  std::vector<float>& samples = out.values();
  if (samples.empty()) return absl::InvalidArgumentError("the recording has no samples");
  // Lossy decoders and the resampler overshoot full scale a little.
  for (float& v : samples) v = std::clamp(v, -1.0f, 1.0f);
  return std::move(samples);
}

}  // namespace sensorium
