#include "runtime/media/image.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/image_codecs.h"

namespace sensorium {
namespace {

bool HasAt(std::span<const uint8_t> bytes, size_t at, std::string_view magic) {
  return bytes.size() >= at + magic.size() &&
         std::equal(magic.begin(), magic.end(), bytes.begin() + at,
                    [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
}

absl::StatusOr<ImageInfo> Read(std::span<const uint8_t> bytes, const ImageLimits& limits,
                               RgbImage* image, const Stop& stop) {
  if (bytes.empty()) return absl::InvalidArgumentError("the image is empty: 0 bytes");
  if (bytes.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the image file has ", bytes.size(),
                                                   " bytes; the limit is ", limits.max_bytes));
  }
  if (HasAt(bytes, 0, "\x89PNG\r\n\x1a\n")) return ReadPng(bytes, limits, image, stop);
  if (HasAt(bytes, 0, "\xff\xd8\xff")) return ReadJpeg(bytes, limits, image, stop);
  if (HasAt(bytes, 0, "RIFF") && HasAt(bytes, 8, "WEBP")) {
    return ReadWebp(bytes, limits, image, stop);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the image is neither PNG, JPEG nor WebP (", bytes.size(), " bytes)"));
}

}  // namespace

absl::Status CheckImageSize(int64_t width, int64_t height, bool whole_in_memory,
                            std::string_view format, const ImageLimits& limits) {
  const std::string what =
      absl::StrCat("the ", std::string(format), " image is ", width, "x", height, " pixels");
  if (width <= 0 || height <= 0) return absl::InvalidArgumentError(absl::StrCat(what, ": empty"));
  if (std::max(width, height) > limits.max_side) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, "; the limit for a side is ", limits.max_side));
  }
  const int64_t pixels = width * height;  // no overflow: both sides fit an int32_t
  const int64_t limit = whole_in_memory ? std::min(limits.max_pixels, limits.max_progressive_pixels)
                                        : limits.max_pixels;
  if (pixels > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ", ", pixels, " in all; the limit ",
                     whole_in_memory ? "for progressive JPEG and for WebP " : "", "is ", limit));
  }
  return absl::OkStatus();
}

absl::StatusOr<ImageInfo> ProbeImage(std::span<const uint8_t> bytes, const ImageLimits& limits) {
  return Read(bytes, limits, nullptr, {});
}

absl::StatusOr<RgbImage> DecodeImage(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                     const Stop& stop) {
  RgbImage image;
  RETURN_IF_ERROR(Read(bytes, limits, &image, stop).status());
  return image;
}

}  // namespace sensorium
