// What a flood of pictures and recordings does to streams that are being written, under the time
// budget and in first-come order.
//
//   flood_bench [--streams=8] [--seconds=8] [--target-step-ms=4] [--svg=FILE] [--json]
//
// Eight answers of the bundled molmo-mini are decoded without an end; each token's arrival is
// noted. Beside them, in the flooded runs, four clients keep asking about pictures and four keep
// sending recordings, no two alike, so that each is encoded. Prints the percentiles of the time
// between two tokens of a stream, the flood's throughput, and what the flood's requests waited for
// their first token.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "runtime/cpu/cpu_backend.h"
#include "runtime/engine/engine.h"
#include "runtime/media/image.h"
#include "runtime/media/png_writer.h"
#include "spdlog/spdlog.h"

namespace sensorium {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  int streams = 8;
  double seconds = 8;
  double target_step_ms = 4;
  std::string svg;
  bool json = false;
};

struct Run {
  const char* name;
  bool flood;
  double target_step_ms;         // 0: first come, first served
  std::vector<double> gaps_ms;   // between two tokens of one stream, all streams together, sorted
  std::vector<double> first_ms;  // first tokens (or segments) of the flood's requests, sorted
  int flood_done = 0;
  double tokens_per_second = 0;
};

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

double Percentile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[std::min(sorted.size() - 1, static_cast<size_t>(q * sorted.size()))];
}

GenerateRequest Question(const std::string& text, std::string image, int32_t max_tokens) {
  GenerateRequest request;
  request.model = "molmo-mini";
  request.max_tokens = max_tokens;
  Message message;
  if (!image.empty()) {
    message.parts.push_back(
        {.kind = Part::Kind::kImage, .text = "", .data = std::move(image), .language = ""});
  }
  message.parts.push_back({.kind = Part::Kind::kText, .text = text, .data = "", .language = ""});
  request.messages.push_back(std::move(message));
  return request;
}

// The same picture, but for a pixel that nobody else has.
std::string Unlike(RgbImage picture, uint32_t n) {
  for (int byte = 0; byte < 3; ++byte) picture.pixels[byte] = static_cast<uint8_t>(n >> 8 * byte);
  auto png = EncodePng(picture);
  CHECK(png.ok()) << png.status();
  return *std::move(png);
}

// The same recording (WAV, 16 bits, 16 kHz), but for the lowest bits of 32 samples of each second:
// so none of its windows is anybody else's.
std::string Unlike(std::string wav, uint32_t n) {
  constexpr size_t kHeader = 44, kSecond = 2 * 16000;
  for (size_t second = kHeader; second + 64 <= wav.size(); second += kSecond) {
    for (size_t bit = 0; bit < 32; ++bit) {
      char& low = wav[second + 2 * bit];
      low = static_cast<char>((low & ~1) | (n >> bit & 1));
    }
  }
  return wav;
}

// Whether it is the stream's last event. A refusal would make the figures mean nothing.
template <typename Event>
bool Ended(const Event& event) {
  const auto* end = std::get_if<StreamEnd>(&event);
  if (end) CHECK(end->status.ok()) << end->status;
  return end != nullptr;
}

double MsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void Measure(const Options& options, Run& run) {
  const std::string models = SENSORIUM_MODELS;
  EngineConfig config;
  config.models = {{"molmo-mini", models + "/molmo-mini"},
                   {"whisper-mini", models + "/whisper-mini"}};
  config.target_step_us = static_cast<int64_t>(run.target_step_ms * 1000);
  config.prefix_cache = false;
  config.event_queue_limit = 4096;
  auto backend = CpuBackend::Create({.dtype = DType::kFloat32});
  CHECK(backend.ok()) << backend.status();
  auto created = Engine::Create(config, *std::move(backend));
  CHECK(created.ok()) << created.status();
  Engine& engine = **created;

  std::atomic<bool> stop{false}, measuring{false};
  std::vector<std::vector<double>> gaps(options.streams);
  std::vector<std::thread> threads;
  std::atomic<int> started{0};
  for (int s = 0; s < options.streams; ++s) {
    threads.emplace_back([&, s] {
      while (!stop) {
        GenerateRequest request = Question("Describe this image.", "", 1900);
        request.sampling.temperature = 1.0f;
        request.sampling.seed = static_cast<uint64_t>(s);
        request.sampling.logit_bias[637] = -100;  // <|endoftext|>: it never ends by itself
        auto queue = engine.Generate(std::move(request));
        Clock::time_point last{};
        bool counted = false;
        for (bool more = true; more;) {
          const GenerateEvent event = queue->Pop();
          if (std::holds_alternative<GenerateDelta>(event)) {
            const Clock::time_point now = Clock::now();
            if (last != Clock::time_point{} && measuring) {
              gaps[s].push_back(std::chrono::duration<double, std::milli>(now - last).count());
            }
            last = now;
            if (!counted) ++started, counted = true;
          }
          more = !Ended(event);
          if (stop) queue->Cancel(), more = false;
        }
      }
    });
  }
  while (started < options.streams) std::this_thread::yield();

  const std::string png = ReadFile(models + "/molmo-mini/wide.png");
  const auto wide =
      DecodeImage({reinterpret_cast<const uint8_t*>(png.data()), png.size()}, config.image_limits);
  CHECK(wide.ok()) << wide.status();
  const std::string morning = ReadFile(models + "/whisper-mini/morning.wav");
  std::atomic<int> done{0};
  std::atomic<uint32_t> asked{0};
  std::vector<std::vector<double>> firsts(8);
  if (run.flood) {
    for (int f = 0; f < 8; ++f) {
      threads.emplace_back([&, f] {
        for (int i = 0; !stop; ++i) {
          const Clock::time_point start = Clock::now();
          bool first = true;
          const auto note = [&] {
            if (first && measuring) firsts[f].push_back(MsSince(start));
            first = false;
          };
          if (f % 2 == 0) {
            auto queue =
                engine.Generate(Question("Describe this image.", Unlike(*wide, ++asked), 20));
            for (bool more = true; more;) {
              const GenerateEvent event = queue->Pop();
              if (std::holds_alternative<GenerateDelta>(event)) note();
              more = !Ended(event);
              if (stop) queue->Cancel(), more = false;
            }
          } else {
            TranscribeRequest request;
            request.model = "whisper-mini";
            request.audio = Unlike(morning, ++asked);
            request.options.language = "en";
            auto queue = engine.Transcribe(std::move(request));
            for (bool more = true; more;) {
              const TranscribeEvent event = queue->Pop();
              if (std::holds_alternative<TranscribeSegment>(event)) note();
              more = !Ended(event);
              if (stop) queue->Cancel(), more = false;
            }
          }
          if (measuring) ++done;
        }
      });
    }
  }
  std::this_thread::sleep_for(std::chrono::seconds(1));  // the flood rises, the prices settle
  measuring = true;
  const Clock::time_point begin = Clock::now();
  std::this_thread::sleep_for(std::chrono::duration<double>(options.seconds));
  measuring = false;
  const double seconds = MsSince(begin) / 1000;
  stop = true;
  for (auto& thread : threads) thread.join();
  const EngineStats stats = engine.Stats();
  CHECK(stats.image_hits == 0 && stats.audio_hit_blocks == 0) << "not all of it was encoded";
  CHECK_EQ(stats.image_misses > 0 && stats.audio_miss_blocks > 0, run.flood);
  for (const auto& g : gaps) run.gaps_ms.insert(run.gaps_ms.end(), g.begin(), g.end());
  for (const auto& f : firsts) run.first_ms.insert(run.first_ms.end(), f.begin(), f.end());
  std::sort(run.gaps_ms.begin(), run.gaps_ms.end());
  std::sort(run.first_ms.begin(), run.first_ms.end());
  run.flood_done = done;
  run.tokens_per_second = static_cast<double>(run.gaps_ms.size()) / seconds;
}

// Share of gaps up to a length, one curve a run, over a logarithmic axis.
void WriteSvg(const std::string& path, const std::vector<Run>& runs) {
  constexpr double kLeft = 60, kTop = 20, kWidth = 640, kHeight = 300, kMin = 0.5, kMax = 500;
  const char* const colors[] = {"#7a7a7a", "#0b6e4f", "#c0392b"};
  const auto x = [&](double ms) {
    return kLeft + kWidth * std::log(std::clamp(ms, kMin, kMax) / kMin) / std::log(kMax / kMin);
  };
  std::ofstream out(path);
  out << "<svg xmlns='http://www.w3.org/2000/svg' width='730' height='400' "
         "font-family='sans-serif' font-size='13'>\n<rect width='730' height='400' "
         "fill='white'/>\n";
  for (const double ms : {0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0}) {
    out << "<line x1='" << x(ms) << "' x2='" << x(ms) << "' y1='" << kTop << "' y2='"
        << kTop + kHeight << "' stroke='#e3e3e3'/><text x='" << x(ms) << "' y='"
        << kTop + kHeight + 18 << "' text-anchor='middle'>" << ms << "</text>\n";
  }
  for (const int percent : {0, 25, 50, 75, 90, 99, 100}) {
    const double y = kTop + kHeight * (1 - percent / 100.0);
    out << "<line x1='" << kLeft << "' x2='" << kLeft + kWidth << "' y1='" << y << "' y2='" << y
        << "' stroke='#e3e3e3'/>";
    if (percent != 99)
      out << "<text x='52' y='" << y + 4 << "' text-anchor='end'>" << percent << "%</text>";
    out << "\n";
  }
  out << "<text x='" << kLeft + kWidth / 2
      << "' y='360' text-anchor='middle'>milliseconds between two tokens of a stream</text>\n";
  for (size_t r = 0; r < runs.size(); ++r) {
    out << "<polyline fill='none' stroke-width='2' stroke='" << colors[r % 3] << "' points='";
    for (int p = 0; p <= 400; ++p) {
      const double q = std::min(p / 400.0, 0.9999);
      out << x(Percentile(runs[r].gaps_ms, q)) << "," << kTop + kHeight * (1 - q) << " ";
    }
    out << "'/>\n<rect x='" << 70 + 215 * r << "' y='378' width='12' height='12' fill='"
        << colors[r % 3] << "'/><text x='" << 88 + 215 * r << "' y='389'>" << runs[r].name
        << "</text>\n";
  }
  out << "</svg>\n";
}

bool TakeFlag(const char* arg, const char* name, std::string& value) {
  const size_t n = std::strlen(name);
  if (std::strncmp(arg, name, n) != 0 || arg[n] != '=') return false;
  value = arg + n + 1;
  return true;
}

}  // namespace
}  // namespace sensorium

int main(int argc, char** argv) {
  using namespace sensorium;
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string value;
    if (TakeFlag(argv[i], "--streams", value)) {
      options.streams = std::max(1, std::atoi(value.c_str()));
    } else if (TakeFlag(argv[i], "--seconds", value)) {
      options.seconds = std::max(0.1, std::atof(value.c_str()));
    } else if (TakeFlag(argv[i], "--target-step-ms", value)) {
      options.target_step_ms = std::max(0.001, std::atof(value.c_str()));
    } else if (TakeFlag(argv[i], "--svg", value)) {
      options.svg = value;
    } else if (std::strcmp(argv[i], "--json") == 0) {
      options.json = true;
    } else {
      std::fprintf(stderr,
                   "usage: flood_bench [--streams=8] [--seconds=8] [--target-step-ms=4] "
                   "[--svg=FILE] [--json]\n");
      return 2;
    }
  }
  spdlog::set_level(spdlog::level::warn);
  std::vector<Run> runs = {
      {.name = "no flood", .flood = false, .target_step_ms = options.target_step_ms},
      {.name = "flood, time budget", .flood = true, .target_step_ms = options.target_step_ms},
      {.name = "flood, first come", .flood = true, .target_step_ms = 0}};
  if (!options.json) {
    std::printf("%d streams, %.0f s a run, budget %.1f ms\n%-20s %9s %9s %9s %9s %11s %10s %12s\n",
                options.streams, options.seconds, options.target_step_ms, "", "p50 ms", "p90 ms",
                "p99 ms", "max ms", "tokens/s", "flood/s", "flood p50 ms");
  }
  for (Run& run : runs) {
    Measure(options, run);
    const double p50 = Percentile(run.gaps_ms, 0.5), p90 = Percentile(run.gaps_ms, 0.9),
                 p99 = Percentile(run.gaps_ms, 0.99),
                 most = run.gaps_ms.empty() ? 0 : run.gaps_ms.back();
    std::printf(options.json ? "{\"run\":\"%s\",\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,"
                               "\"max_ms\":%.3f,\"tokens_per_s\":%.1f,\"flood_per_s\":%.2f,"
                               "\"flood_first_p50_ms\":%.1f}\n"
                             : "%-20s %9.2f %9.2f %9.2f %9.2f %11.0f %10.2f %12.1f\n",
                run.name, p50, p90, p99, most, run.tokens_per_second,
                run.flood_done / options.seconds, Percentile(run.first_ms, 0.5));
    std::fflush(stdout);
  }
  if (!options.svg.empty()) WriteSvg(options.svg, runs);
  return 0;
}
