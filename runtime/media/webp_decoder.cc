// WebP through libwebp: lossy and lossless stills.
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
  if (Stopped(stop)) return StoppedError();  // then in one go
  image->width = info.width;
  image->height = info.height;
  image->pixels.resize(size_t{3} * info.width * info.height);
  config.output.colorspace = MODE_RGB;  // not RGBA: alpha is dropped, nothing is composited
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = image->pixels.data();
  config.output.u.RGBA.stride = 3 * info.width;
  config.output.u.RGBA.size = image->pixels.size();
  code = WebPDecode(bytes.data(), bytes.size(), &config);
  WebPFreeDecBuffer(&config.output);
  if (code != VP8_STATUS_OK) return Damaged(code);
  return info;
}

}  // namespace sensorium
