#include "runtime/weights/zip_reader.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/weights/quoted.h"
#include "zlib.h"

namespace sensorium {

namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50, kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50;
constexpr uint64_t kMaxEntries = 1'000'000;

// Little-endian integers at offsets that have been checked.
class Bytes {
 public:
  explicit Bytes(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t size() const { return bytes_.size(); }
  bool Has(uint64_t at, uint64_t n) const { return at <= size() && n <= size() - at; }
  uint16_t U16(uint64_t at) const { return Read<uint16_t>(at); }
  uint32_t U32(uint64_t at) const { return Read<uint32_t>(at); }
  uint64_t U64(uint64_t at) const { return Read<uint64_t>(at); }
  std::string Text(uint64_t at, uint64_t n) const {
    return std::string(reinterpret_cast<const char*>(bytes_.data() + at), n);
  }

 private:
  template <typename T>
  T Read(uint64_t at) const {
    T v;
    std::memcpy(&v, bytes_.data() + at, sizeof v);
    return v;
  }
  std::span<const std::byte> bytes_;
};

// zlib's counts are 32 bits wide where `long` is; crc32_z takes a size_t.
uint32_t Crc32(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()));
}

}  // namespace

absl::StatusOr<std::map<std::string, std::span<const std::byte>>> ReadStoredZip(
    std::span<const std::byte> archive, const std::string& origin) {
  const auto error = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": ", parts...));
  };
  const Bytes zip(archive);
  // The end record is the last thing in the file but for a comment of up to 65535 bytes.
  if (zip.size() < 22) return error("not a zip archive: ", zip.size(), " bytes");
  uint64_t end = zip.size() - 22;
  const uint64_t earliest = end > 65535 ? end - 65535 : 0;
  while (zip.U32(end) != kEnd || end + 22 + zip.U16(end + 20) != zip.size()) {
    if (end == earliest) return error("not a zip archive: no end of central directory");
    --end;
  }
  uint64_t entries = zip.U16(end + 10);
  uint64_t directory_bytes = zip.U32(end + 12);
  uint64_t directory = zip.U32(end + 16);
  if (end >= 20 && zip.U32(end - 20) == kEnd64Locator) {
    const uint64_t end64 = zip.U64(end - 20 + 8);
    if (!zip.Has(end64, 56) || zip.U32(end64) != kEnd64) return error("bad zip64 end record");
    entries = zip.U64(end64 + 32);
    directory_bytes = zip.U64(end64 + 40);
    directory = zip.U64(end64 + 48);
  }
  if (!zip.Has(directory, directory_bytes) || entries > kMaxEntries ||
      entries * 46 > directory_bytes) {
    return error("the zip directory claims ", entries, " entries in ", directory_bytes,
                 " bytes at ", directory, " of ", zip.size());
  }

  struct Extent {
    uint64_t begin, data, end;  // of the local header, the data and what follows
    uint32_t crc;
    std::string name;
  };
  std::vector<Extent> extents;
  std::map<std::string, std::span<const std::byte>> files;
  uint64_t at = directory;
  const uint64_t directory_end = directory + directory_bytes;
  for (uint64_t i = 0; i < entries; ++i) {
    if (at > directory_end || directory_end - at < 46 || zip.U32(at) != kCentralHeader) {
      return error("zip entry ", i, " of ", entries, " is missing from the directory");
    }
    const uint16_t flags = zip.U16(at + 8), method = zip.U16(at + 10);
    uint64_t packed = zip.U32(at + 20), size = zip.U32(at + 24), local = zip.U32(at + 42);
    const uint64_t name_bytes = zip.U16(at + 28), extra_bytes = zip.U16(at + 30);
    const uint64_t comment_bytes = zip.U16(at + 32);
    if (directory_end - at - 46 < name_bytes + extra_bytes + comment_bytes) {
      return error("zip entry ", i, " runs over the directory");
    }
    const std::string name = zip.Text(at + 46, name_bytes), quoted = Quoted(name);
    // zip64: the fields that are all ones follow in extra field 1, in this order.
    for (uint64_t x = at + 46 + name_bytes, x_end = x + extra_bytes; x_end - x >= 4;) {
      const uint64_t field_end = x + 4 + zip.U16(x + 2);
      if (field_end > x_end) return error("zip entry ", quoted, " has a bad extra field");
      if (zip.U16(x) == 1) {
        uint64_t value = x + 4;
        for (uint64_t* field : {&size, &packed, &local}) {
          if (*field != 0xffffffffu) continue;
          if (field_end - value < 8) return error("zip entry ", quoted, " lacks its zip64 sizes");
          *field = zip.U64(value);
          value += 8;
        }
      }
      x = field_end;
    }
    if (method != 0 || packed != size) {
      return error("zip entry ", quoted, " is compressed (method ", method,
                   "); torch.save stores without compressing");
    }
    if (flags & 1) return error("zip entry ", quoted, " is encrypted");
    if (!zip.Has(local, 30) || zip.U32(local) != kLocalHeader) {
      return error("zip entry ", quoted, " has no local header at ", local);
    }
    const uint64_t begin = local + 30 + zip.U16(local + 26) + zip.U16(local + 28);
    if (!zip.Has(begin, size) || !zip.Has(local + 30, zip.U16(local + 26)) ||
        zip.Text(local + 30, zip.U16(local + 26)) != name) {
      return error("zip entry ", quoted, " of ", size, " bytes at ", begin,
                   " does not match its local header in a file of ", zip.size());
    }
    if (!files.emplace(name, archive.subspan(begin, size)).second) {
      return error("zip entry ", quoted, " appears twice");
    }
    extents.push_back({local, begin, begin + size, zip.U32(at + 16), quoted});
    at += 46 + name_bytes + extra_bytes + comment_bytes;
  }
  if (at != directory_end) return error("the zip directory goes on after its last entry");
  extents.push_back({directory, directory_end, directory_end, 0, "the directory"});
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i - 1].end) {
      return error("zip entries overlap: ", extents[i - 1].name, " and ", extents[i].name);
    }
  }
  // Only now: entries that lie apart cannot make us read the file more than once.
  for (const Extent& e : extents) {
    const uint32_t crc = Crc32(archive.subspan(e.data, e.end - e.data));
    if (crc != e.crc) {
      return error("zip entry ", e.name, " is damaged: its CRC-32 is ", absl::Hex(crc),
                   ", the directory says ", absl::Hex(e.crc));
    }
  }
  return files;
}

}  // namespace sensorium
