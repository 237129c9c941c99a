// WebP through libwebp: lossy and lossless stills.
#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/image_codecs.h"
#include "webp/decode.h"

namespace sensorium {
namespace {

absl::Status Damaged(VP8StatusCode code) {
  const char* why = "it cannot be decoded";
  switch (code) {
    case VP8_STATUS_NOT_ENOUGH_DATA:
      why = "it ends too early";
      break;
    case VP8_STATUS_BITSTREAM_ERROR:
      why = "its bit stream is wrong";
      break;
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      why = "it uses a feature that is not supported";
      break;
    case VP8_STATUS_OUT_OF_MEMORY:
      return absl::ResourceExhaustedError("no memory for the WebP decoder");
    default:
      break;
  }
  return absl::InvalidArgumentError(absl::StrCat("the WebP image is damaged: ", why));
}

// As WebPDecode, with a look at `stop` after each few KiB, which are some rows of the picture.
absl::StatusOr<ImageInfo> DecodeInPieces(std::span<const uint8_t> bytes, WebPDecoderConfig& config,
                                         const Stop& stop, const ImageInfo& info) {
  const size_t piece = std::max<size_t>(1024, bytes.size() / 256);
  const std::unique_ptr<WebPIDecoder, void (*)(WebPIDecoder*)> decoder(
      WebPIDecode(nullptr, 0, &config), WebPIDelete);
  if (!decoder) return Damaged(VP8_STATUS_OUT_OF_MEMORY);
  for (size_t have = 0; have < bytes.size();) {
    if (Stopped(stop)) return StoppedError();
    have = std::min(have + piece, bytes.size());
    const VP8StatusCode code = WebPIUpdate(decoder.get(), bytes.data(), have);
    if (code == VP8_STATUS_OK) return info;
    if (code != VP8_STATUS_SUSPENDED) return Damaged(code);
  }
  return Damaged(VP8_STATUS_NOT_ENOUGH_DATA);
}

}  // namespace

absl::StatusOr<ImageInfo> ReadWebp(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                   RgbImage* image, const Stop& stop) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) {
    return absl::InternalError("libwebp's header and library have different versions");
  }
  VP8StatusCode code = WebPGetFeatures(bytes.data(), bytes.size(), &config.input);
  if (code != VP8_STATUS_OK) return Damaged(code);
  RETURN_IF_ERROR(CheckImageSize(config.input.width, config.input.height,
                                 /*whole_in_memory=*/true, "WebP", limits));
  if (config.input.has_animation) {
    return absl::InvalidArgumentError("the WebP image is an animation; send one of its frames");
  }
  const ImageInfo info = {config.input.width, config.input.height, "WebP"};
  if (image == nullptr) return info;
  image->width = info.width;
  image->height = info.height;
  image->pixels.resize(size_t{3} * info.width * info.height);
  config.output.colorspace = MODE_RGB;  // not RGBA: alpha is dropped, nothing is composited
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = image->pixels.data();
  config.output.u.RGBA.stride = 3 * info.width;
  config.output.u.RGBA.size = image->pixels.size();
  return DecodeInPieces(bytes, config, stop, info);
}

}  // namespace sensorium
