// JPEG through libjpeg-turbo. Its errors leave by longjmp, so what runs under setjmp is one
// function that owns nothing with a destructor.
#include <csetjmp>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/image_codecs.h"

// These want size_t and FILE declared before them.
#include <jpeglib.h>

#include <jerror.h>

namespace sensorium {
namespace {

// The library hands its callbacks &cinfo alone; client_data leads back to this.
struct JpegReader {
  jpeg_decompress_struct cinfo = {};
  jpeg_error_mgr errors = {};
  jpeg_progress_mgr progress = {};
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = {};
  int max_scans = 0;
  bool too_many_scans = false;
  const Stop* stop = nullptr;
  bool stopped = false;

  JpegReader() = default;
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&cinfo); }  // safe also where nothing was created
};

JpegReader& ReaderOf(j_common_ptr cinfo) { return *static_cast<JpegReader*>(cinfo->client_data); }

[[noreturn]] void OnError(j_common_ptr cinfo) {
  JpegReader& reader = ReaderOf(cinfo);
  cinfo->err->format_message(cinfo, reader.message);
  std::longjmp(reader.jump, 1);
}

// The library would go on and paint grey over what is missing. Two warnings are harmless: bytes
// between segments, which cameras leave, and an unknown Adobe transform code.
void OnMessage(j_common_ptr cinfo, int level) {
  const int code = cinfo->err->msg_code;
  if (level < 0 && code != JWRN_EXTRANEOUS_DATA && code != JWRN_ADOBE_XFORM) OnError(cinfo);
}

// Called for every row of blocks that is read and every row of pixels that is written.
void OnProgress(j_common_ptr cinfo) {
  JpegReader& reader = ReaderOf(cinfo);
  if (Stopped(*reader.stop)) {
    reader.stopped = true;
    std::longjmp(reader.jump, 1);
  }
  if (reader.cinfo.input_scan_number > reader.max_scans) {
    reader.too_many_scans = true;
    std::longjmp(reader.jump, 1);
  }
}

void PrintNothing(j_common_ptr) {}

void Install(JpegReader& reader, const ImageLimits& limits, const Stop& stop) {
  reader.stop = &stop;
  reader.cinfo.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = OnError;
  reader.errors.emit_message = OnMessage;
  reader.errors.output_message = PrintNothing;
  reader.cinfo.client_data = &reader;
  reader.max_scans = limits.max_jpeg_scans;
  reader.progress.progress_monitor = OnProgress;
}

// Each returns false when the library failed; why is then in `reader`.
bool ReadHeader(JpegReader& reader, std::span<const uint8_t> bytes) {
  if (setjmp(reader.jump)) return false;
  jpeg_create_decompress(&reader.cinfo);  // keeps err and client_data
  reader.cinfo.progress = &reader.progress;
  jpeg_mem_src(&reader.cinfo, bytes.data(), bytes.size());
  jpeg_read_header(&reader.cinfo, TRUE);
  return true;
}

// The vector's memory is reserved, but touched only as far as rows have come. Its own locals are
// plain values, so a longjmp over them loses nothing.
bool ReadRows(JpegReader& reader, std::vector<uint8_t>& pixels) {
  if (setjmp(reader.jump)) return false;
  jpeg_decompress_struct& cinfo = reader.cinfo;
  cinfo.out_color_space = JCS_RGB;
  jpeg_start_decompress(&cinfo);
  const size_t row_bytes = size_t{3} * cinfo.output_width;
  while (cinfo.output_scanline < cinfo.output_height) {
    pixels.resize(row_bytes * (cinfo.output_scanline + 1));
    JSAMPROW row = pixels.data() + row_bytes * cinfo.output_scanline;
    jpeg_read_scanlines(&cinfo, &row, 1);
  }
  jpeg_finish_decompress(&cinfo);
  return true;
}

absl::Status Damaged(const JpegReader& reader) {
  if (reader.stopped) return StoppedError();
  if (reader.too_many_scans) {
    return absl::InvalidArgumentError(absl::StrCat("the JPEG image has at least ",
                                                   reader.cinfo.input_scan_number,
                                                   " scans; the limit is ", reader.max_scans));
  }
  return absl::InvalidArgumentError(absl::StrCat("the JPEG image is damaged: ", reader.message));
}

}  // namespace

absl::StatusOr<ImageInfo> ReadJpeg(std::span<const uint8_t> bytes, const ImageLimits& limits,
                                   RgbImage* image, const Stop& stop) {
  JpegReader reader;
  Install(reader, limits, stop);
  if (!ReadHeader(reader, bytes)) return Damaged(reader);
  const jpeg_decompress_struct& cinfo = reader.cinfo;
  // Several scans (progressive, or a baseline file with its components apart) need all coefficients
  // in memory.
  const bool whole = jpeg_has_multiple_scans(&reader.cinfo);
  RETURN_IF_ERROR(CheckImageSize(cinfo.image_width, cinfo.image_height, whole, "JPEG", limits));
  if (cinfo.jpeg_color_space == JCS_CMYK || cinfo.jpeg_color_space == JCS_YCCK) {
    return absl::InvalidArgumentError(
        "the JPEG image has CMYK colours; convert it to RGB before sending it");
  }
  const ImageInfo info = {static_cast<int32_t>(cinfo.image_width),
                          static_cast<int32_t>(cinfo.image_height), "JPEG"};
  if (image == nullptr) return info;
  image->width = info.width;
  image->height = info.height;
  image->pixels.reserve(size_t{3} * info.width * info.height);
  if (!ReadRows(reader, image->pixels)) return Damaged(reader);
  return info;
}

}  // namespace sensorium
