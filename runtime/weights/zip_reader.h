// The entries of a zip archive that stores without compressing, as torch.save writes them. Reads
// the central directory (zip64 too) and checks every entry against its local header and its CRC-32.
// Format: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
#pragma once

#include <map>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace sensorium {

// Name -> bytes within `archive`. INVALID_ARGUMENT naming `origin` for anything else than stored,
// unencrypted, undamaged, non-overlapping, uniquely named entries.
absl::StatusOr<std::map<std::string, std::span<const std::byte>>> ReadStoredZip(
    std::span<const std::byte> archive, const std::string& origin);

}  // namespace sensorium
