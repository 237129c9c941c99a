#include "runtime/weights/zip_reader.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/weights/file_writers.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// The message with which an archive is refused; it names the file.
std::string Refusal(const std::string& archive) {
  const auto entries = ReadStoredZip(AsBytes(archive), "x.bin");
  EXPECT_FALSE(entries.ok());
  EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(entries.status().message(), HasSubstr("x.bin: "));
  return std::string(entries.status().message());
}

void ExpectReadsTwoEntries(const std::string& archive) {
  const auto entries = ReadStoredZip(AsBytes(archive), "x.bin");
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2u);
  const auto text = [](std::span<const std::byte> bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  EXPECT_EQ(text(entries->at("a")), "first");
  EXPECT_EQ(text(entries->at("b/c")), "second entry");
}

const std::vector<ZipEntry> kTwo = {{"a", "first"}, {"b/c", "second entry"}};

// Locals, directory and end record, where the directory may say what it likes.
std::string Archive(const std::string& locals, const std::string& directory, uint16_t entries) {
  return locals + directory +
         ZipEnd(entries, static_cast<uint32_t>(directory.size()),
                static_cast<uint32_t>(locals.size()));
}

TEST(ZipReaderTest, ReadsStoredEntries) { ExpectReadsTwoEntries(Zip(kTwo)); }
TEST(ZipReaderTest, ReadsZip64Archives) { ExpectReadsTwoEntries(Zip64(kTwo)); }

TEST(ZipReaderTest, FindsTheDirectoryBeforeAComment) {
  std::string archive = Zip(kTwo);
  archive[archive.size() - 2] = 5;
  ExpectReadsTwoEntries(archive + "hello");
}

TEST(ZipReaderTest, RefusesEveryPrefix) {
  for (const std::string& whole : {Zip(kTwo), Zip64(kTwo)}) {
    for (size_t n = 0; n < whole.size(); ++n) {
      EXPECT_FALSE(ReadStoredZip(AsBytes(whole.substr(0, n)), "x.bin").ok())
          << n << " of " << whole.size() << " bytes";
    }
  }
}

TEST(ZipReaderTest, RefusesWhatIsNoArchive) {
  EXPECT_THAT(Refusal(""), HasSubstr("not a zip archive"));
  EXPECT_THAT(Refusal(std::string(200'000, 'x')), HasSubstr("not a zip archive"));
}

TEST(ZipReaderTest, RefusesCompressedEntries) {
  EXPECT_THAT(Refusal(Zip({{.name = "a", .bytes = "first", .method = 8}})),
              HasSubstr("zip entry 'a' is compressed (method 8)"));
}

TEST(ZipReaderTest, RefusesEncryptedEntries) {
  EXPECT_THAT(Refusal(Zip({{.name = "a", .bytes = "first", .flags = 1}})),
              HasSubstr("zip entry 'a' is encrypted"));
}

TEST(ZipReaderTest, RefusesAWrongCrcWithBothNumbers) {
  // The CRC-32 of "123456789" is the check value of every catalogue of CRCs.
  EXPECT_THAT(
      Refusal(Zip({{.name = "a", .bytes = "123456789", .crc = 0x1234}})),
      AllOf(HasSubstr("zip entry 'a' is damaged"), HasSubstr("cbf43926"), HasSubstr("1234")));
}

TEST(ZipReaderTest, RefusesDamagedBytes) {
  std::string archive = Zip(kTwo);
  archive[archive.find("second") + 3] ^= 1;
  EXPECT_THAT(Refusal(archive), HasSubstr("zip entry 'b/c' is damaged"));
}

TEST(ZipReaderTest, RefusesTwoEntriesOfOneName) {
  EXPECT_THAT(Refusal(Zip({{"a", "first"}, {"a", "first"}})), HasSubstr("'a' appears twice"));
}

TEST(ZipReaderTest, RefusesAnEntryInsideAnother) {
  const ZipEntry inner{"b", "inner"}, outer{"a", ZipLocal(inner)};
  const uint32_t inner_at = static_cast<uint32_t>(ZipLocal(outer).size() - outer.bytes.size());
  EXPECT_THAT(
      Refusal(Archive(ZipLocal(outer), ZipCentral(outer, 0) + ZipCentral(inner, inner_at), 2)),
      HasSubstr("zip entries overlap: 'a' and 'b'"));
}

TEST(ZipReaderTest, RefusesAnEntryOverTheDirectory) {
  ZipEntry entry{.name = "a", .bytes = "first", .crc = 1};
  const std::string local = ZipLocal(entry);
  entry.bytes += "PK";  // what the directory claims of it
  EXPECT_THAT(Refusal(Archive(local, ZipCentral(entry, 0), 1)),
              HasSubstr("zip entries overlap: 'a' and the directory"));
}

TEST(ZipReaderTest, RefusesEntriesBehindTheEnd) {
  const ZipEntry entry{"a", "first"};
  EXPECT_THAT(Refusal(Archive(ZipLocal(entry), ZipCentral(entry, 0xfffffffe), 1)),
              HasSubstr("'a' has no local header at 4294967294"));
  ZipEntry longer = entry;
  longer.bytes.resize(1000);
  EXPECT_THAT(Refusal(Archive(ZipLocal(entry), ZipCentral(longer, 0), 1)),
              HasSubstr("'a' of 1000 bytes at 31"));
}

TEST(ZipReaderTest, RefusesAnEntryWhoseTwoHeadersDiffer) {
  EXPECT_THAT(Refusal(Archive(ZipLocal({"a", "first"}), ZipCentral({"b", "first"}, 0), 1)),
              HasSubstr("'b' of 5 bytes at 31 does not match its local header"));
}

TEST(ZipReaderTest, RefusesADirectoryOfTheWrongLength) {
  const ZipEntry entry{"a", "first"};
  const std::string central = ZipCentral(entry, 0);
  EXPECT_THAT(Refusal(Archive(ZipLocal(entry), central, 2)), HasSubstr("claims 2 entries in 47"));
  EXPECT_THAT(Refusal(Archive(ZipLocal(entry), central + std::string(45, '\0'), 2)),
              HasSubstr("zip entry 1 of 2 is missing"));
  EXPECT_THAT(Refusal(Archive(ZipLocal(entry), central + central, 1)),
              HasSubstr("goes on after its last entry"));
}

}  // namespace
}  // namespace sensorium
