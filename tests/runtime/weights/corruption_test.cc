// Damage at random places: a file is refused or loads, and whatever loads lies inside the file.
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/mapped_file.h"
#include "runtime/weights/pickle_reader.h"
#include "runtime/weights/safetensors.h"
#include "runtime/weights/torch_file.h"
#include "runtime/weights/zip_reader.h"
#include "tests/runtime/weights/file_writers.h"

namespace sensorium {
namespace {

// Opens the folder's only weight file. What loads must lie inside the file.
bool Loads(const TempDir& dir, const std::string& name) {
  const auto file = MappedFile::Open(dir.path() + "/" + name);
  if (!file.ok()) return false;  // empty
  const auto tensors =
      name == "model.safetensors" ? ReadSafetensors(**file) : ReadTorchFile(**file);
  const auto checkpoint = Checkpoint::Open(dir.path());
  if (!tensors.ok()) {
    EXPECT_EQ(checkpoint.status(), tensors.status());
    EXPECT_THAT(tensors.status().message(), testing::HasSubstr(name));
    return false;
  }
  const std::span<const std::byte> bytes = (*file)->bytes();
  for (const TensorInfo& tensor : *tensors) {
    EXPECT_LE(tensor.bytes, bytes.size());
    EXPECT_GE(tensor.data, bytes.data());
    EXPECT_LE(tensor.data + tensor.bytes, bytes.data() + bytes.size());
  }
  return checkpoint.ok();
}

struct Sample {
  std::string file, bytes;
};

Sample SafetensorsSample() {
  return {"model.safetensors", Safetensors({{"a", "F32", {2, 3}, Bytes<float>({1, 2, 3, 4, 5, 6})},
                                            {"b", "F16", {3}, Bytes<uint16_t>({1, 2, 3})},
                                            {"c", "BF16", {1}, Bytes<uint16_t>({4})}})};
}

Sample TorchSample() {
  Pickle pickle;
  pickle.BeginDict().Text("a").Tensor({.elements = 6}, 0, {2, 3}, {3, 1}).Raw("q\x01");
  pickle.Text("b").Raw("h\x01").Text("c").Tensor({.type = "HalfStorage", .key = "1", .elements = 4},
                                                 1, {3}, {1});
  pickle.Raw("u}").Text("_metadata").BeginDict().Text("").Raw("}usb");
  return {"pytorch_model.bin", TorchFile(pickle.Stop(), {{"0", Bytes<float>({1, 2, 3, 4, 5, 6})},
                                                         {"1", Bytes<uint16_t>({1, 2, 3, 4})}})};
}

class CorruptionTest : public testing::TestWithParam<Sample (*)()> {
 protected:
  CorruptionTest() { dir_.Write("config.json", "{}"); }
  const Sample sample_ = GetParam()();
  TempDir dir_;
};

TEST_P(CorruptionTest, TheWholeFileLoads) {
  dir_.Write(sample_.file, sample_.bytes);
  const auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->Has("a") && (*checkpoint)->Has("b") && (*checkpoint)->Has("c"));
}

TEST_P(CorruptionTest, EveryPrefixIsRefused) {
  for (size_t n = 0; n < sample_.bytes.size(); ++n) {
    dir_.Write(sample_.file, sample_.bytes.substr(0, n));
    EXPECT_FALSE(Loads(dir_, sample_.file)) << n << " of " << sample_.bytes.size() << " bytes";
  }
}

TEST_P(CorruptionTest, ChangedBytesNeverCrash) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = sample_.bytes;
    // One byte mostly; sometimes a few, which can agree with each other.
    for (unsigned i = 0, n = random() % 4 ? 1 : 4; i < n; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    dir_.Write(sample_.file, bytes);
    refused += !Loads(dir_, sample_.file);
  }
  EXPECT_GT(refused, 1000);  // or the readers look at nothing
}

// Damage that the checksum of the archive does not see, as its writer meant it.
TEST(PickleCorruptionTest, ChangedBytesOfThePickleNeverCrash) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  const TempDir dir;
  dir.Write("config.json", "{}");
  Pickle pickle;
  pickle.BeginDict().Text("a").Tensor({.elements = 6}, 0, {2, 3}, {3, 1}).Raw("q\x01");
  pickle.Text("b").Raw("h\x01").Text("c").Tensor({.elements = 6}, 2, {2, 2}, {2, 1});
  const std::string whole = pickle.EndDict();
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = whole;
    for (unsigned i = 0, n = 1 + random() % 3; i < n; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    // On the heap, in a block of its exact size, for the sanitizer to watch.
    const std::vector<char> exact(bytes.begin(), bytes.end());
    const bool pickle_reads = ReadStateDictPickle(std::as_bytes(std::span(exact)), "x").ok();
    dir.Write("pytorch_model.bin", TorchFile(bytes, {{"0", std::string(24, '\1')}}));
    const bool loads = Loads(dir, "pytorch_model.bin");
    EXPECT_TRUE(pickle_reads || !loads);
    refused += !loads;
  }
  EXPECT_GT(refused, 1000);
}

TEST(ZipCorruptionTest, ChangedBytesNeverCrash) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (const bool zip64 : {false, true}) {
    const std::vector<ZipEntry> entries = {{"a", "first"}, {"b", "second"}};
    const std::string whole = zip64 ? Zip64(entries) : Zip(entries);
    int refused = 0;
    for (int round = 0; round < 3000; ++round) {
      std::vector<char> bytes(whole.begin(), whole.end());
      for (unsigned i = 0, n = 1 + random() % 3; i < n; ++i) {
        bytes[random() % bytes.size()] = static_cast<char>(random() % 2 ? random() : 255);
      }
      const auto archive = std::as_bytes(std::span(bytes));
      const auto read = ReadStoredZip(archive, "x");
      refused += !read.ok();
      if (!read.ok()) continue;
      for (const auto& [name, data] : *read) {
        EXPECT_GE(data.data(), archive.data());
        EXPECT_LE(data.data() + data.size(), archive.data() + archive.size());
      }
    }
    EXPECT_GT(refused, 1000);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CorruptionTest, testing::Values(&SafetensorsSample, &TorchSample),
                         [](const auto& info) {
                           return std::string(info.index == 0 ? "Safetensors" : "Torch");
                         });

}  // namespace
}  // namespace sensorium
