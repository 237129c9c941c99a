// What a device with its two models costs: the prices that the simulator takes for the truth, the
// KV blocks there are, and the sizes that turn a request into work.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/scheduler/cost_model.h"

namespace sensorium {

struct VisionLanguageProfile {
  Prices prices;                 // encode unit: one crop
  int32_t block_size = 16;       // tokens of a KV block
  int32_t crop_tokens = 144;     // image tokens of a crop
  int32_t max_encode_units = 4;  // crops of one call
  int32_t feature_slots = 64;    // pictures whose features may be held at once
};

struct SpeechProfile {
  Prices prices;            // encode unit: one of window_stages
  int32_t block_size = 16;  // tokens of a KV block
  int32_t window_ms = 30'000;
  int32_t window_stages = 8;     // cut points of a window's encode
  int32_t max_encode_units = 8;  // stages of one call
  int32_t cross_positions = 1500;
  int32_t prompt_tokens = 4;  // of each window
};

struct DeviceProfile {
  std::string name;
  std::string source;      // where the prices come from
  bool predicted = false;  // computed from published figures: nobody has measured it
  int32_t kv_blocks = 0;
  VisionLanguageProfile vision;
  SpeechProfile speech;
};

std::vector<std::string> BuiltInProfiles();

// A built-in profile of that name or, if there is none, the JSON file: the fields above under their
// names, {"name", "source", "predicted", "kv_blocks", "vision": {..., "prices": {...}}, "speech"}.
// What is left out keeps its default, a price 0; what is not known is an error.
absl::StatusOr<DeviceProfile> LoadDeviceProfile(const std::string& name_or_path);
absl::StatusOr<DeviceProfile> ParseDeviceProfile(const std::string& json,
                                                 const std::string& origin);
std::string DeviceProfileJson(const DeviceProfile& profile);  // reads back as the same

}  // namespace sensorium
