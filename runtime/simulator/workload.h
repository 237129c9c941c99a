// What comes in: requests with their sizes and times, drawn from distributions or read from a CSV
// file. The same workload and seed give the same requests, on every machine.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/scheduler/job.h"
#include "runtime/simulator/distribution.h"

namespace sensorium {

enum class RequestKind : uint8_t { kPicture, kSpeech, kText };
inline constexpr int kNumRequestKinds = 3;
std::string_view RequestKindName(RequestKind kind);  // "picture", "speech", "text"
absl::StatusOr<RequestKind> ParseRequestKind(const std::string& name);

// One request, as the scheduler and a CSV file know it.
struct Arrival {
  int64_t time_us = 0;
  int32_t tenant = 0;
  RequestKind kind = RequestKind::kText;
  int32_t image_crops = 0;
  int64_t audio_ms = 0;  // speech: transcribed; else a spoken question, heard first
  int64_t media = 0;     // which picture or recording: the same number, the same one; 0: a new one
  int32_t prompt_tokens = 0;  // of text of its own, beside the picture's and the system prompt's
  int32_t system_tokens = 0;  // of the prompt that all of a tenant's requests begin with
  int32_t output_tokens = 1;  // of each row; speech: of all its windows together
  int32_t rows = 1;           // answers, or beams: as many decode at once
  int32_t priority = 0;
  int64_t deadline_us = kNever;  // of the last token, since the start
};

// One kind of request in a mix.
struct RequestMix {
  RequestKind kind = RequestKind::kText;
  double weight = 1;
  Distribution image_crops, audio_ms, media, prompt_tokens, system_tokens, output_tokens;
  Distribution rows = {.a = 1};
  int32_t priority = 0;
  int64_t deadline_ms = 0;  // since arrival; 0: none
};

struct TenantMix {
  std::string name = "default";
  double share = 1;       // of the requests
  int32_t weight = 1000;  // of the device, in thousandths
  // Requests in line, and admitted. 0: half of the line, all of it where nobody else comes.
  int32_t max_waiting = 0;
  int32_t max_running = std::numeric_limits<int32_t>::max();
};

struct Workload {
  double rate = 1;         // requests a second, on average
  double duration_s = 60;  // of arrivals
  // Bursts: Poisson arrivals while it is on, none while it is off, both of exponential length; the
  // average stays `rate`. 0: Poisson all the time.
  double on_s = 0, off_s = 0;
  std::vector<RequestMix> mix;
  std::vector<TenantMix> tenants = {{}};
  // Where it is not empty, these are the requests, and rate, bursts and mix mean nothing.
  std::vector<Arrival> arrivals;
};

// The usual sizes of a kind: pictures of 1 to 13 crops with a question, recordings of 5 to 60
// seconds, questions in text.
RequestMix DefaultMix(RequestKind kind, double weight);
// "picture:3,speech:1,text:6": of the usual sizes.
absl::StatusOr<std::vector<RequestMix>> ParseMix(const std::string& text);

// In order of time. At most `most` of them: more is an error that names both numbers.
absl::StatusOr<std::vector<Arrival>> DrawArrivals(const Workload& workload, uint64_t seed,
                                                  int64_t most = 20'000'000);

// A CSV file with a header of these columns, in any order; all but the first may be left out:
// time_ms,tenant,kind,image_crops,audio_ms,media,prompt_tokens,system_tokens,output_tokens,rows,
// priority,deadline_ms
// A tenant is a name; new ones are added to `workload.tenants` with the usual weight. Sets
// `workload.arrivals` and its duration. Errors name file and line.
absl::Status ReadArrivalsCsv(const std::string& path, Workload& workload);

}  // namespace sensorium
