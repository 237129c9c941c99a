#include "runtime/models/compression_ratio.h"

#include <zlib.h>

#include <vector>

#include "runtime/base/check.h"

namespace sensorium {

float CompressionRatio(std::string_view text) {
  uLongf compressed = compressBound(text.size());
  std::vector<Bytef> buffer(compressed);
  // Python's zlib.compress(): level -1, which zlib takes as 6, and a 15-bit window.
  const int status =
      compress2(buffer.data(), &compressed, reinterpret_cast<const Bytef*>(text.data()),
                text.size(), Z_DEFAULT_COMPRESSION);
  CHECK_EQ(status, Z_OK);  // compressBound() is enough by its contract
  return static_cast<float>(static_cast<double>(text.size()) / static_cast<double>(compressed));
}

}  // namespace sensorium
