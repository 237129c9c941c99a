// RGB -> PNG, for pictures that are shown to people: an answer's points drawn on the question.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/media/image.h"

namespace sensorium {

// The file's bytes: 8-bit RGB, no ancillary chunks, the same bytes for the same picture.
// INVALID_ARGUMENT: a picture without pixels, or whose buffer is not [height, width, 3].
absl::StatusOr<std::string> EncodePng(const RgbImage& image);

}  // namespace sensorium
