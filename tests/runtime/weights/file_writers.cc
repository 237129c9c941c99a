#include "tests/runtime/weights/file_writers.h"

#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/base/check.h"

namespace sensorium {

namespace {

template <typename T>
std::string Number(T n) {
  std::string bytes(sizeof n, '\0');
  std::memcpy(bytes.data(), &n, sizeof n);
  return bytes;
}
std::string U16(uint64_t n) { return Number(static_cast<uint16_t>(n)); }
std::string U32(uint64_t n) { return Number(static_cast<uint32_t>(n)); }
std::string U64(uint64_t n) { return Number(n); }

// CRC-32 bit by bit (APPNOTE.TXT 4.4.7): another program than the reader's.
uint32_t Crc(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}
uint32_t CrcOf(const ZipEntry& e) { return e.crc ? e.crc : Crc(e.bytes); }

}  // namespace

// In memory where that is possible: thousands of files are written.
TempDir::TempDir() : path_("/dev/shm/weights-XXXXXX") {
  if (mkdtemp(path_.data())) return;
  path_ = testing::TempDir() + "/weights-XXXXXX";
  CHECK(mkdtemp(path_.data()) != nullptr);
}
TempDir::~TempDir() {
  std::error_code ec;
  std::filesystem::remove_all(path_, ec);
}

std::string TempDir::Write(const std::string& name, std::string_view bytes) const {
  const std::string path = path_ + "/" + name;
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  CHECK(file.good());
  return path;
}

std::string SafetensorsOf(std::string_view header, std::string_view data) {
  return U64(header.size()) + std::string(header) + std::string(data);
}

std::string Safetensors(const std::vector<StoredTensor>& tensors) {
  nlohmann::json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const StoredTensor& t : tensors) {
    header[t.name] = {{"dtype", t.dtype},
                      {"shape", t.shape},
                      {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // as the reference writes: data begin aligned
  return SafetensorsOf(text, data);
}

std::string ZipLocal(const ZipEntry& e) {
  return "PK\x03\x04" + U16(0) + U16(e.flags) + U16(e.method) + U32(0) + U32(CrcOf(e)) +
         U32(e.bytes.size()) + U32(e.bytes.size()) + U16(e.name.size()) + U16(0) + e.name + e.bytes;
}

std::string ZipCentral(const ZipEntry& e, uint32_t local_at) {
  return "PK\x01\x02" + U32(0) + U16(e.flags) + U16(e.method) + U32(0) + U32(CrcOf(e)) +
         U32(e.bytes.size()) + U32(e.bytes.size()) + U16(e.name.size()) + U16(0) + U16(0) + U16(0) +
         U16(0) + U32(0) + U32(local_at) + e.name;
}

std::string ZipEnd(uint16_t entries, uint32_t directory_bytes, uint32_t directory_at) {
  return "PK\x05\x06" + U32(0) + U16(entries) + U16(entries) + U32(directory_bytes) +
         U32(directory_at) + U16(0);
}

std::string Zip(const std::vector<ZipEntry>& entries) {
  std::string zip, directory;
  for (const ZipEntry& e : entries) {
    directory += ZipCentral(e, static_cast<uint32_t>(zip.size()));
    zip += ZipLocal(e);
  }
  return zip + directory +
         ZipEnd(static_cast<uint16_t>(entries.size()), static_cast<uint32_t>(directory.size()),
                static_cast<uint32_t>(zip.size()));
}

std::string Zip64(const std::vector<ZipEntry>& entries) {
  std::string zip, directory;
  for (const ZipEntry& e : entries) {
    directory += "PK\x01\x02" + U32(0) + U16(e.flags) + U16(e.method) + U32(0) + U32(CrcOf(e)) +
                 U32(~0u) + U32(~0u) + U16(e.name.size()) + U16(28) + U16(0) + U16(0) + U16(0) +
                 U32(0) + U32(~0u) + e.name + U16(1) + U16(24) + U64(e.bytes.size()) +
                 U64(e.bytes.size()) + U64(zip.size());
    zip += ZipLocal(e);
  }
  const uint64_t directory_at = zip.size(), end64_at = zip.size() + directory.size();
  return zip + directory + "PK\x06\x06" + U64(44) + U32(0) + U32(0) + U32(0) + U64(entries.size()) +
         U64(entries.size()) + U64(directory.size()) + U64(directory_at) + "PK\x06\x07" + U32(0) +
         U64(end64_at) + U32(1) + ZipEnd(0xffff, ~0u, ~0u);
}

Pickle& Pickle::Text(const std::string& text) { return Op('X').Raw(U32(text.size())).Raw(text); }
Pickle& Pickle::Int(int64_t n) { return Raw("\x8a\x08" + Number(n)); }

Pickle& Pickle::Ints(const std::vector<int64_t>& tuple) {
  Op('(');
  for (const int64_t n : tuple) Int(n);
  return Op('t');
}

Pickle& Pickle::Tensor(const PickledStorage& storage, int64_t offset,
                       const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  Global("torch._utils", "_rebuild_tensor_v2").Raw("((").Text("storage");
  Global("torch", storage.type).Text(storage.key).Text("cpu").Int(storage.elements).Raw("tQ");
  return Int(offset).Ints(shape).Ints(strides).Op(0x89).OrderedDict().Raw("tR");
}

std::string TorchFile(const std::string& pickle, const std::map<std::string, std::string>& storages,
                      const std::string& byteorder) {
  std::vector<ZipEntry> entries = {{"archive/data.pkl", pickle}, {"archive/byteorder", byteorder}};
  for (const auto& [key, bytes] : storages) entries.push_back({"archive/data/" + key, bytes});
  entries.push_back({"archive/version", "3\n"});
  return Zip(entries);
}

}  // namespace sensorium
