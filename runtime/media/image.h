// Pictures from strangers: file bytes -> 8-bit RGB, with every limit checked before memory is
// spent. PNG (libspng), JPEG (libjpeg-turbo) and WebP (libwebp), told apart by their first bytes,
// never by a name. Pure functions: thread-safe, no globals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/stop.h"

namespace sensorium {

// pixels: [height, width, 3] uint8, R G B.
struct RgbImage {
  int32_t width = 0;
  int32_t height = 0;
  std::vector<uint8_t> pixels;
};

struct ImageLimits {
  size_t max_bytes = 32 << 20;  // of the file
  int64_t max_pixels = 64'000'000;
  // Progressive JPEG and WebP hold the whole picture inside their decoder, not one row.
  int64_t max_progressive_pixels = 16'000'000;
  int32_t max_side = 32768;
  // A progressive JPEG is decoded once per scan: a small file with thousands of them takes minutes.
  int32_t max_jpeg_scans = 50;
};

struct ImageInfo {
  int32_t width = 0;
  int32_t height = 0;
  std::string_view format;  // "PNG", "JPEG" or "WebP"; static storage
};

// Reads the header alone and checks every limit that it can break; decodes no pixel.
// INVALID_ARGUMENT: not a picture we read, a broken header, an animation, or over a limit (the
// message has both numbers).
absl::StatusOr<ImageInfo> ProbeImage(std::span<const uint8_t> bytes, const ImageLimits& limits);

// ProbeImage, then the pixels. As Pillow's convert("RGB"): alpha is dropped, not composited, a
// palette is expanded, grey is replicated, EXIF orientation is ignored (Molmo's reference does so:
// its transpose drops the result). Of 16 bits the high byte counts. Colour profiles and gamma are
// ignored. CMYK JPEGs are refused. INVALID_ARGUMENT also for a file that is damaged or ends early.
// CANCELLED: `stop` said so; it is asked before every row, of a WebP (16 million pixels at most)
// before all of them.
absl::StatusOr<RgbImage> DecodeImage(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                     const Stop& stop = {});

}  // namespace sensorium
