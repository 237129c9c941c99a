#include "runtime/media/png_writer.h"

#include <cstdlib>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "spng.h"

namespace sensorium {
namespace {

struct FreeContext {
  void operator()(spng_ctx* ctx) const { spng_ctx_free(ctx); }
};
struct FreeBuffer {
  void operator()(void* buffer) const { std::free(buffer); }  // libspng allocates with malloc
};

}  // namespace

absl::StatusOr<std::string> EncodePng(const RgbImage& image) {
  // Below 2^64 for any two positive sides, but not below 2^63.
  if (image.width <= 0 || image.height <= 0 ||
      image.pixels.size() != uint64_t{3} * image.width * image.height) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write a PNG of ", image.width, "x",
                                                   image.height, " pixels from ",
                                                   image.pixels.size(), " bytes"));
  }
  const std::unique_ptr<spng_ctx, FreeContext> ctx(spng_ctx_new(SPNG_CTX_ENCODER));
  if (ctx == nullptr) return absl::ResourceExhaustedError("no memory for the PNG encoder");
  spng_ihdr header = {};
  header.width = static_cast<uint32_t>(image.width);
  header.height = static_cast<uint32_t>(image.height);
  header.bit_depth = 8;
  header.color_type = SPNG_COLOR_TYPE_TRUECOLOR;
  int code = spng_set_option(ctx.get(), SPNG_ENCODE_TO_BUFFER, 1);
  // Shown once and thrown away: level 3 is several times as fast as 6 and hardly larger.
  if (code == 0) code = spng_set_option(ctx.get(), SPNG_IMG_COMPRESSION_LEVEL, 3);
  if (code == 0) code = spng_set_ihdr(ctx.get(), &header);
  if (code == 0) {
    code = spng_encode_image(ctx.get(), image.pixels.data(), image.pixels.size(), SPNG_FMT_PNG,
                             SPNG_ENCODE_FINALIZE);
  }
  size_t size = 0;
  const std::unique_ptr<void, FreeBuffer> buffer(
      code == 0 ? spng_get_png_buffer(ctx.get(), &size, &code) : nullptr);
  if (buffer == nullptr) {
    return absl::InternalError(absl::StrCat("writing a PNG failed: ", spng_strerror(code)));
  }
  return std::string(static_cast<const char*>(buffer.get()), size);
}

}  // namespace sensorium
