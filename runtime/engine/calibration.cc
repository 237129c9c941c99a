#include "runtime/engine/calibration.h"

#include <algorithm>
#include <chrono>

#include "absl/functional/function_ref.h"
#include "runtime/engine/device_media.h"
#include "runtime/engine/forward_pass.h"
#include "runtime/engine/step_batch.h"
#include "spdlog/spdlog.h"

namespace sensorium {

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kGuessFlops = 50e9;

int64_t Ps(double flops) {
  return std::max<int64_t>(1, static_cast<int64_t>(flops / kGuessFlops * 1e12));
}

Prices GuessMolmo(const Molmo& molmo) {
  const LlmConfig& c = molmo.config.llm;
  const VisionConfig& v = molmo.config.vision;
  const double width = c.hidden;
  const double attention = width * c.head_dim * (c.heads + c.kv_heads) * 2;
  const double mlp = 3.0 * width * c.ffn * std::max(1, c.experts_per_token);
  const double token = 2 * c.layers * (attention + mlp);
  const double head = 2.0 * width * c.embedding_rows;
  const double vit =
      2.0 * v.layers * v.positions() * (4.0 * v.width * v.width + 2.0 * v.width * v.mlp_dim);
  return {.encode_unit_ps = Ps(vit),
          .forward_ps = Ps(token),
          .prefill_token_ps = Ps(token),
          .prefill_context_ps = Ps(4.0 * c.layers * c.heads * c.head_dim),
          .decode_row_ps = Ps(token + head),
          .decode_context_ps = Ps(4.0 * c.layers * c.heads * c.head_dim),
          .cross_position_ps = 0};
}

Prices GuessWhisper(const WhisperConfig& c, int32_t stages) {
  const double d = c.hidden;
  const double encoder = 2.0 * c.encoder_layers * c.audio_positions *
                         (4 * d * d + 2 * d * c.encoder_ffn + 2.0 * c.audio_positions * d);
  const double token = 2.0 * c.decoder_layers * (6 * d * d + 2 * d * c.decoder_ffn);
  const double context = 4.0 * c.decoder_layers * d;
  return {.encode_unit_ps = Ps(encoder / stages),
          .forward_ps = Ps(token),
          .prefill_token_ps = Ps(token),
          .prefill_context_ps = Ps(context),
          .decode_row_ps = Ps(token + 2 * d * c.vocab),
          .decode_context_ps = Ps(context),
          .cross_position_ps = Ps(context)};
}

// Runs bodies and keeps what they took, until the time is up.
class Stopwatch {
 public:
  Stopwatch(Backend& backend, int64_t limit_ms)
      : be_(backend), end_(Clock::now() + std::chrono::milliseconds(limit_ms)) {}
  bool over() const { return Clock::now() >= end_; }
  template <typename Body>
  void Measure(const Work& work, const Body& body) {
    if (over()) return;
    body();  // pages, caches and clocks come up
    be_.Wait();
    if (over()) return;
    for (int run = 0; run < 2 && !over(); ++run) {
      const Clock::time_point start = Clock::now();
      body();
      be_.Wait();
      samples_.push_back(
          {work,
           std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count()});
    }
  }
  std::vector<Sample> Take() { return std::move(samples_); }

 private:
  Backend& be_;
  const Clock::time_point end_;
  std::vector<Sample> samples_;
};

// One kind of work, ready to be run as often as `run` likes.
using Trial = absl::FunctionRef<void(const Work& work, absl::FunctionRef<void()> run)>;

// An audio window, or `crops` crops of a picture.
void TryEncoder(LoadedModel& model, const CalibrationSpace& space, int32_t crops, Trial trial) {
  if (model.is_whisper()) {
    const WhisperConfig& c = model.whisper->config();
    const int32_t block_size = model.cross_kv.layout.block_size;
    const int32_t need = BlockTable::BlocksFor(c.audio_positions, block_size);
    if (!space.blocks.Reserve(need)) return;
    {
      BlockTable table(space.blocks, block_size, need);
      table.Grow(c.audio_positions);
      std::vector<int64_t> slots(c.audio_positions);
      for (int32_t i = 0; i < c.audio_positions; ++i) slots[i] = table.Slot(i);
      const TensorView x(space.encoder_state, DType::kFloat32, {c.audio_positions, c.hidden});
      const int32_t stages = model.UnitsPerWindow();
      if (model.media) {  // a window's share of listening is a unit, too
        const int64_t samples = int64_t{c.window_frames()} * model.log_mel->hop();
        const DeviceRecording unheard(std::vector<float>(samples, 0.1f), 0, *model.log_mel_tables,
                                      c.window_frames());
        DeviceRecording recording = unheard;  // stays where it is until the trial has waited
        std::byte* state = model.RecordingState(space.encoder_state);
        trial({.encode_units = 1 + stages}, [&] {
          recording = unheard;
          recording.Listen(*model.media, recording.units_left(), state);
          const auto mel = [&](TensorView y) {
            recording.LogMel(*model.media, y, 0, y.rows(), state);
          };
          model.whisper->EncodeStages(0, stages, x, mel, model.cross_kv, slots, space.workspace);
        });
      } else {
        const std::vector<float> mel(static_cast<size_t>(c.window_frames()) * c.mels, 0.1f);
        trial({.encode_units = stages}, [&] {
          model.whisper->EncodeStages(0, stages, x, FromHost{model.whisper->backend(), mel},
                                      model.cross_kv, slots, space.workspace);
        });
      }
    }
    space.blocks.Unreserve(need);
    return;
  }
  const VisionConfig& v = model.molmo->vision->config();
  const int64_t tokens = int64_t{crops} * v.tokens_per_crop();
  const std::vector<float> masks(static_cast<size_t>(crops) * v.patches(), 1.0f);
  const std::vector<int32_t> index(tokens, 0);
  const TensorView features = model.FeatureSlot(0).Rows(0, tokens);
  if (model.media) {  // the same crop each time, of a picture that is resized first
    const MolmoImageConfig& config = model.molmo->config.image;
    const int32_t side = config.crop_size;
    const auto layout = LayOutMolmoImage(side, side, config);
    CHECK(layout.ok()) << layout.status();
    const DevicePicture picture(
        RgbImage{side, side, std::vector<uint8_t>(size_t{3} * side * side, 128)}, *layout, config);
    trial({.encode_units = picture.units() + crops}, [&] {
      picture.Resize(*model.media, 0, picture.units(), space.encoder_state);
      const auto cut = [&](TensorView pixels) {
        for (int32_t c = 0; c < crops; ++c) {
          picture.CutCrops(*model.media, 0, space.encoder_state,
                           pixels.Rows(int64_t{c} * v.patches(), int64_t{c + 1} * v.patches()));
        }
      };
      model.molmo->vision->Encode(features, cut, masks, index, space.workspace);
    });
    return;
  }
  const std::vector<float> pixels(static_cast<size_t>(crops) * v.patches() * v.patch_dim, 0.1f);
  trial({.encode_units = crops},
        [&] { model.molmo->vision->Encode(features, pixels, masks, index, space.workspace); });
}

// A pass over `rows` sequences of `tokens` new tokens behind `context` cached ones.
void TryForward(LoadedModel& model, const CalibrationSpace& space, int32_t rows, int32_t tokens,
                int32_t context, Trial trial) {
  const int32_t block_size = model.self_kv.layout.block_size;
  const int32_t per_row = BlockTable::BlocksFor(context + tokens, block_size);
  int32_t cross_len = 0, cross_blocks = 0;
  if (model.is_whisper()) {
    cross_len = model.whisper->config().audio_positions;
    cross_blocks = BlockTable::BlocksFor(cross_len, model.cross_kv.layout.block_size);
  }
  const int32_t need = rows * per_row + cross_blocks;
  if (context + tokens > model.max_positions() || rows * tokens > space.max_batch_tokens ||
      rows > space.max_logit_rows || !space.blocks.Reserve(need)) {
    return;
  }
  {
    std::vector<BlockTable> tables;
    for (int32_t r = 0; r < rows; ++r) {
      tables.emplace_back(space.blocks, block_size, per_row);
      tables.back().Grow(context + tokens);
    }
    BlockTable cross(space.blocks, model.is_whisper() ? model.cross_kv.layout.block_size : 16);
    cross.Grow(cross_len);
    const std::vector<int32_t> ids(tokens, 0);
    const int32_t last = tokens - 1;
    StepBatch batch;
    ChosenTokens chosen;
    for (const BlockTable& table : tables) {
      const int32_t row =
          batch.Add({.tokens = ids,
                     .first_position = context,
                     .self = &table,
                     .cross = model.is_whisper() ? &cross : nullptr,
                     .cross_len = cross_len,
                     .wanted = tokens == 1 ? std::span(&last, 1) : std::span<const int32_t>(),
                     .features = {},
                     .feature_rows = {},
                     .feature_offsets = {}});
      if (tokens == 1) batch.Choose(row, {});
    }
    const int64_t n = int64_t{rows} * tokens, from = context, t = tokens;
    Work work{.forwards = 1, .cross_positions = n * cross_len};
    if (tokens == 1) {
      work.decode_rows = rows;
      work.decode_context = rows * (from + 1);
    } else {
      work.prefill_tokens = n;
      work.prefill_context = rows * (t * from + t * (t + 1) / 2);
    }
    trial(work, [&] {
      const TensorView logits = RunForward(space.backend, model, batch,
                                           {.logits = space.logits, .workspace = space.workspace});
      space.backend.ChooseTokens(chosen, logits, batch.choices());
    });
  }
  space.blocks.Unreserve(need);
}

// Decodes of at most `max_context` tokens of context.
void Record(LoadedModel& model, const CalibrationSpace& space, int32_t max_context) {
  const int32_t need = model.is_whisper() ? 2 : 1;
  if (!space.backend.replays_passes() || !space.blocks.Reserve(need)) return;
  {
    const Clock::time_point start = Clock::now();
    BlockTable self(space.blocks, model.self_kv.layout.block_size);
    BlockTable cross(space.blocks, model.is_whisper() ? model.cross_kv.layout.block_size : 16);
    self.Grow(1);
    cross.Grow(model.is_whisper() ? 1 : 0);
    RecordDecodes(space.backend, model, std::min(space.max_batch_seqs, space.max_batch_tokens),
                  max_context, self, model.is_whisper() ? &cross : nullptr,
                  {.logits = space.logits, .workspace = space.workspace});
    spdlog::info("{}: {} decode passes recorded in {:.2f} s", model.name,
                 model.decode_shapes.size(),
                 std::chrono::duration<double>(Clock::now() - start).count());
  }
  space.blocks.Unreserve(need);
}

}  // namespace

Prices GuessPrices(const LoadedModel& model) {
  return model.is_whisper() ? GuessWhisper(model.whisper->config(), model.UnitsPerWindow())
                            : GuessMolmo(*model.molmo);
}

std::vector<Sample> MeasureModel(LoadedModel& model, const CalibrationSpace& space,
                                 int64_t limit_ms) {
  Stopwatch watch(space.backend, limit_ms);
  const auto measure = [&](const Work& work, absl::FunctionRef<void()> run) {
    watch.Measure(work, run);
  };
  TryForward(model, space, 1, 1, 16, measure);
  TryEncoder(model, space, 1, measure);
  TryForward(model, space, 1, 32, 0, measure);
  TryForward(model, space, 8, 1, 16, measure);
  TryForward(model, space, 1, 128, 0, measure);
  TryForward(model, space, 4, 1, 240, measure);
  TryForward(model, space, 1, 32, 240, measure);
  TryForward(model, space, 16, 1, 100, measure);
  return watch.Take();
}

void Rehearse(LoadedModel& model, const CalibrationSpace& space, int32_t max_crops) {
  const auto once = [&](const Work&, absl::FunctionRef<void()> run) {
    run();
    space.backend.Wait();
  };
  const int32_t block_size = model.self_kv.layout.block_size;
  const int32_t cross_blocks = model.is_whisper()
                                   ? BlockTable::BlocksFor(model.whisper->config().audio_positions,
                                                           model.cross_kv.layout.block_size)
                                   : 0;
  // What fits the arena at all: a step's sequences must, too.
  const int32_t blocks = space.blocks.total() - cross_blocks;
  if (blocks > 0) {
    const int32_t positions = static_cast<int32_t>(
        std::min<int64_t>(model.max_positions(), int64_t{blocks} * block_size));
    // The longest context: before a pass of one is recorded, since it may ask for other kernels.
    TryForward(model, space, 1, 1, positions - 1, once);
    Record(model, space, positions);
    // As many tokens as a pass has, in as few sequences as hold them.
    const int32_t tokens = std::min(space.max_batch_tokens, positions);
    const int32_t rows = std::min({space.max_batch_tokens / tokens, space.max_logit_rows,
                                   blocks / BlockTable::BlocksFor(tokens, block_size)});
    TryForward(model, space, std::max(1, rows), tokens, 0, once);
    // As many sequences.
    TryForward(model, space, std::min({space.max_batch_seqs, space.max_batch_tokens, blocks}), 1, 0,
               once);
  }
  if (!model.is_whisper()) {
    const int64_t per_crop = model.molmo->vision->config().tokens_per_crop();
    max_crops = static_cast<int32_t>(std::min<int64_t>(max_crops, model.MaxFeatures() / per_crop));
  }
  TryEncoder(model, space, max_crops, once);
}

}  // namespace sensorium
