// A whole file mapped read only. Bytes are fetched from disk as they are touched.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace sensorium {

class MappedFile {
 public:
  // NOT_FOUND, or INVALID_ARGUMENT for a directory, an empty file or a failed mapping.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  bool Contains(const std::byte* p) const { return p >= data_ && p < data_ + size_; }

  // Hints about [data, data + bytes): read it in soon, or drop it from this process's memory.
  void WillNeed(const std::byte* data, size_t bytes) const;
  void DontNeed(const std::byte* data, size_t bytes) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  void Advise(const std::byte* data, size_t bytes, int advice) const;

  const std::string path_;
  const std::byte* const data_;
  const size_t size_;
};

}  // namespace sensorium
