// How a token is chosen from a row of logits; what each field does and in which order is told in
// sampler.h.
#pragma once

#include <cstdint>
#include <map>

namespace sensorium {

struct SamplingParams {
  float temperature = 0;         // 0: greedy
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // (0, 1]; 1: off
  float min_p = 0;               // [0, 1); 0: off
  float repetition_penalty = 1;  // > 0; 1: off
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
  std::map<int32_t, float> logit_bias;  // token id -> added to its logit
};

}  // namespace sensorium
