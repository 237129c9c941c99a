#include "runtime/weights/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sensorium {

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string what = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(what) : absl::InvalidArgumentError(what);
  }
  struct stat info {};
  absl::Status status;
  void* data = MAP_FAILED;
  if (fstat(fd, &info) != 0) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  } else if (info.st_size == 0) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": the file is empty"));
  } else {
    data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      status = absl::InvalidArgumentError(
          absl::StrCat(path, ": cannot map ", info.st_size, " bytes: ", std::strerror(errno)));
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return std::unique_ptr<MappedFile>(
      new MappedFile(path, static_cast<const std::byte*>(data), static_cast<size_t>(info.st_size)));
}

MappedFile::~MappedFile() { munmap(const_cast<std::byte*>(data_), size_); }

void MappedFile::Advise(const std::byte* data, size_t bytes, int advice) const {
  // Whole pages only: inwards, so that a neighbour's page is never dropped.
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

void MappedFile::WillNeed(const std::byte* data, size_t bytes) const {
  Advise(data, bytes, MADV_WILLNEED);
}
void MappedFile::DontNeed(const std::byte* data, size_t bytes) const {
  Advise(data, bytes, MADV_DONTNEED);
}

}  // namespace sensorium
