// PNG through libspng, row by row, so that a file that lies about its size spends no memory on it.
#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/image_codecs.h"
#include "spng.h"

namespace sensorium {
namespace {

struct FreeContext {
  void operator()(spng_ctx* ctx) const { spng_ctx_free(ctx); }
};

// what is wrong with the file, in libspng's words
absl::Status Damaged(int code) {
  return absl::InvalidArgumentError(
      absl::StrCat("the PNG image is damaged: ", spng_strerror(code)));
}

// A side as the file's first chunk has it, at this byte: 4 bytes, the highest first.
int64_t SideAt(std::span<const uint8_t> bytes, size_t at) {
  int64_t side = 0;
  for (size_t i = 0; i < 4; ++i) side = side << 8 | bytes[at + i];
  return side;
}

// Rows as they come. The vector's memory is reserved, but touched only as far as rows have come: of
// an interlaced picture, to its end in the first of seven passes. Sets *stopped when `stop` said so.
int DecodeRows(spng_ctx* ctx, const ImageInfo& info, std::vector<uint8_t>& pixels,
               const Stop& stop, bool* stopped) {
  const size_t row_bytes = size_t{3} * info.width;
  pixels.reserve(row_bytes * info.height);
  int code = spng_decode_image(ctx, nullptr, 0, SPNG_FMT_RGB8, SPNG_DECODE_PROGRESSIVE);
  while (code == 0) {
    if ((*stopped = Stopped(stop))) return 0;
    spng_row_info row = {};
    code = spng_get_row_info(ctx, &row);
    if (code != 0) break;
    pixels.resize(std::max(pixels.size(), row_bytes * (row.row_num + 1)));
    code = spng_decode_row(ctx, pixels.data() + row_bytes * row.row_num, row_bytes);
  }
  return code == SPNG_EOI ? 0 : code;  // libspng says "end of image" with the last row
}

}  // namespace

absl::StatusOr<ImageInfo> ReadPng(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                  RgbImage* image, const Stop& stop) {
  const std::unique_ptr<spng_ctx, FreeContext> ctx(spng_ctx_new(0));
  if (ctx == nullptr) return absl::ResourceExhaustedError("no memory for the PNG decoder");
  // Chunks beside the picture (profiles, texts) are kept in memory: as much as the file itself.
  const size_t chunk_bytes = std::min<size_t>(limits.max_bytes, 0x7fffffff);  // PNG's own limit
  int code = spng_set_chunk_limits(ctx.get(), chunk_bytes, chunk_bytes);
  // A damaged chunk beside the picture does not spoil the picture.
  if (code == 0) code = spng_set_crc_action(ctx.get(), SPNG_CRC_ERROR, SPNG_CRC_DISCARD);
  if (code == 0) code = spng_set_png_buffer(ctx.get(), bytes.data(), bytes.size());
  spng_ihdr header = {};
  if (code == 0) code = spng_get_ihdr(ctx.get(), &header);
  if (code != 0 && code != SPNG_EOVERFLOW) return Damaged(code);
  // Of a valid header with sides near 2^31 the library says no more than "overflow": the limits'
  // message is better. Source: PNG specification, 11.2.2: the first chunk, IHDR, begins with both.
  RETURN_IF_ERROR(CheckImageSize(SideAt(bytes, 16), SideAt(bytes, 20), /*whole_in_memory=*/false,
                                 "PNG", limits));
  if (code != 0) return Damaged(code);
  const ImageInfo info = {static_cast<int32_t>(header.width), static_cast<int32_t>(header.height),
                          "PNG"};
  if (image == nullptr) return info;

  image->width = info.width;
  image->height = info.height;
  // RGB8 expands palettes and grey, keeps the high byte of 16 bits and, without further flags,
  // ignores transparency and gamma.
  bool stopped = false;
  code = DecodeRows(ctx.get(), info, image->pixels, stop, &stopped);
  if (stopped) return StoppedError();
  // The library stops at the last pixel; the CRC of the chunk it lies in comes after it.
  if (code == 0) code = spng_decode_chunks(ctx.get());
  if (code != 0) return Damaged(code);
  return info;
}

}  // namespace sensorium
