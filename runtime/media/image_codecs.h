// What image.cc and the decoders of the three formats share; nobody else includes it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "runtime/media/image.h"

namespace sensorium {

// OK when a picture of this size may be decoded. whole_in_memory: the decoder must hold all of it
// at once (progressive JPEG, WebP), so the smaller pixel limit counts.
absl::Status CheckImageSize(int64_t width, int64_t height, bool whole_in_memory,
                            std::string_view format, const ImageLimits& limits);

// Each reads its format's header, checks the size and, when `image` is given, decodes into it.
// CANCELLED when `stop` said so. On an error `image` holds nothing of meaning.
absl::StatusOr<ImageInfo> ReadPng(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                  RgbImage* image, const Stop& stop);
absl::StatusOr<ImageInfo> ReadJpeg(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                   RgbImage* image, const Stop& stop);
absl::StatusOr<ImageInfo> ReadWebp(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                   RgbImage* image, const Stop& stop);

}  // namespace sensorium
