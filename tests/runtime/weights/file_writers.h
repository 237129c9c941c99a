// Writes small checkpoint files, good and bad ones: what the tests of the readers read.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sensorium {

// A fresh folder, gone with the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  // Writes a file into the folder and returns its path.
  std::string Write(const std::string& name, std::string_view bytes) const;

 private:
  std::string path_;
};

// The bytes of values in memory.
template <typename T>
std::string Bytes(std::initializer_list<T> values) {
  return std::string(reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T));
}
inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// --- safetensors ---

struct StoredTensor {
  std::string name, dtype;  // as in the header: F32, F16, BF16
  std::vector<int64_t> shape;
  std::string bytes;
};
std::string Safetensors(const std::vector<StoredTensor>& tensors);
// A header as it stands, then the data.
std::string SafetensorsOf(std::string_view header, std::string_view data);

// --- zip: the pieces of an archive, to be put together rightly or wrongly ---

struct ZipEntry {
  std::string name, bytes;
  uint16_t method = 0, flags = 0;
  uint32_t crc = 0;  // 0: the right one
};
std::string ZipLocal(const ZipEntry& entry);
std::string ZipCentral(const ZipEntry& entry, uint32_t local_at);
std::string ZipEnd(uint16_t entries, uint32_t directory_bytes, uint32_t directory_at);
// A whole archive.
std::string Zip(const std::vector<ZipEntry>& entries);
// The same with all sizes and offsets in zip64 fields.
std::string Zip64(const std::vector<ZipEntry>& entries);

// --- pickle ---

struct PickledStorage {
  std::string type = "FloatStorage", key = "0";
  int64_t elements = 0;
};

// Appends opcodes as CPython's protocol 2 writes them.
class Pickle {
 public:
  Pickle() : bytes_("\x80\x02") {}
  Pickle& Raw(std::string_view bytes) { return bytes_.append(bytes), *this; }
  Pickle& Op(unsigned char op) { return bytes_.push_back(static_cast<char>(op)), *this; }
  Pickle& Global(const std::string& module, const std::string& attribute) {
    return Raw("c" + module + "\n" + attribute + "\n");
  }
  Pickle& Text(const std::string& text);
  Pickle& Int(int64_t n);  // LONG1
  Pickle& Ints(const std::vector<int64_t>& tuple);
  Pickle& OrderedDict() { return Global("collections", "OrderedDict").Raw(")R"); }
  // _rebuild_tensor_v2 of a view of a storage.
  Pickle& Tensor(const PickledStorage& storage, int64_t offset, const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& strides);
  // Begins and ends an OrderedDict with entries.
  Pickle& BeginDict() { return OrderedDict().Op('('); }
  std::string EndDict() { return Op('u').Stop(); }
  std::string Stop() { return bytes_ + "."; }

 private:
  std::string bytes_;
};

// A pytorch_model.bin.
std::string TorchFile(const std::string& pickle, const std::map<std::string, std::string>& storages,
                      const std::string& byteorder = "little");

}  // namespace sensorium
