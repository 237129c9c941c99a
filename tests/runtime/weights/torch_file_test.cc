#include "runtime/weights/torch_file.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/weights/file_writers.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class TorchFileTest : public testing::Test {
 protected:
  absl::StatusOr<std::vector<TensorInfo>> Read(std::string_view bytes) {
    auto file = MappedFile::Open(dir_.Write("pytorch_model.bin", bytes));
    if (!file.ok()) return file.status();
    file_ = *std::move(file);
    return ReadTorchFile(*file_);
  }
  // The message with which a file is refused; it names the file.
  std::string Refusal(std::string_view bytes) {
    const auto tensors = Read(bytes);
    EXPECT_FALSE(tensors.ok());
    EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(tensors.status().message(), HasSubstr("pytorch_model.bin: "));
    return std::string(tensors.status().message());
  }
  // A view 'a' of a storage of six floats, 0 to 5.
  std::string View(int64_t offset, std::vector<int64_t> shape, std::vector<int64_t> strides) {
    return TorchFile(Pickle().BeginDict().Text("a").Tensor(kSix, offset, shape, strides).EndDict(),
                     {{"0", kFloats}});
  }

  const PickledStorage kSix = {.elements = 6};
  const std::string kFloats = Bytes<float>({0, 1, 2, 3, 4, 5});
  TempDir dir_;
  std::unique_ptr<MappedFile> file_;
};

TEST_F(TorchFileTest, ReadsViewsOfSharedStorages) {
  const auto tensors =
      Read(TorchFile(Pickle()
                         .BeginDict()
                         .Text("all")
                         .Tensor(kSix, 0, {2, 3}, {3, 1})
                         .Text("tail")
                         .Tensor(kSix, 4, {2}, {1})
                         .Text("half")
                         .Tensor({.type = "HalfStorage", .key = "1", .elements = 1}, 0, {1}, {1})
                         .EndDict(),
                     {{"0", kFloats}, {"1", Bytes<uint16_t>({0x3c00})}}));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const auto bytes = [](const TensorInfo& t) {
    return std::string(reinterpret_cast<const char*>(t.data), t.bytes);
  };
  EXPECT_EQ(bytes((*tensors)[0]), kFloats);
  EXPECT_EQ((*tensors)[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(bytes((*tensors)[1]), Bytes<float>({4, 5}));
  EXPECT_EQ(bytes((*tensors)[2]), Bytes<uint16_t>({0x3c00}));
  EXPECT_EQ((*tensors)[2].dtype, DType::kFloat16);
}

TEST_F(TorchFileTest, RefusesViewsBehindTheStoragesEnd) {
  EXPECT_THAT(Refusal(View(0, {7}, {1})),
              HasSubstr("tensor 'a' takes 7 elements from 0 on of storage '0', which holds 6"));
  EXPECT_THAT(Refusal(View(5, {2}, {1})), HasSubstr("takes 2 elements from 5 on"));
  EXPECT_THAT(Refusal(View(INT64_MAX, {2}, {1})), HasSubstr("which holds 6"));
  EXPECT_THAT(Refusal(View(7, {0}, {1})), HasSubstr("takes 0 elements from 7 on"));
}

TEST_F(TorchFileTest, RefusesStoragesThatAreNotAsLongAsThePickleSays) {
  const auto file = [&](int64_t elements, const std::string& bytes) {
    return TorchFile(
        Pickle().BeginDict().Text("a").Tensor({.elements = elements}, 0, {6}, {1}).EndDict(),
        {{"0", bytes}});
  };
  EXPECT_TRUE(Read(file(6, kFloats)).ok());
  EXPECT_THAT(Refusal(file(1 << 30, kFloats)),
              AllOf(HasSubstr("storage '0' has 24 bytes"), HasSubstr("1073741824 elements of 4")));
  EXPECT_THAT(Refusal(file(6, kFloats + "x")), HasSubstr("storage '0' has 25 bytes"));
  EXPECT_THAT(Refusal(file(6, kFloats.substr(4))), HasSubstr("storage '0' has 20 bytes"));
}

TEST_F(TorchFileTest, RefusesAStorageThatIsMissing) {
  EXPECT_THAT(
      Refusal(TorchFile(Pickle().BeginDict().Text("a").Tensor(kSix, 0, {6}, {1}).EndDict(), {})),
      HasSubstr("tensor 'a': storage '0' is missing"));
}

TEST_F(TorchFileTest, RefusesTensorsThatAreNotContiguous) {
  EXPECT_THAT(Refusal(View(0, {2, 3}, {1, 2})),
              AllOf(HasSubstr("tensor 'a' of shape [2, 3]"), HasSubstr("strides [1, 2]")));
  EXPECT_THAT(Refusal(View(0, {1000}, {0})), HasSubstr("not contiguous"));  // expand()
  EXPECT_TRUE(Read(View(0, {1, 6}, {77, 1})).ok());  // the stride of a single row means nothing
}

TEST_F(TorchFileTest, RefusesShapesWhoseProductOverflows) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  EXPECT_THAT(Refusal(View(0, {kHuge, kHuge}, {kHuge, 1})), HasSubstr("impossible shape"));
  EXPECT_THAT(Refusal(View(0, {4, kHuge}, {kHuge, 1})), HasSubstr("impossible shape"));
  EXPECT_THAT(Refusal(View(0, {kHuge, 0, kHuge}, {0, kHuge, 1})), HasSubstr("impossible shape"));
}

TEST_F(TorchFileTest, RefusesBigEndianStorages) {
  EXPECT_THAT(Refusal(TorchFile(Pickle().BeginDict().EndDict(), {}, "big")),
              HasSubstr("byte order is 'big', expected 'little'"));
}

TEST_F(TorchFileTest, RefusesArchivesWithoutExactlyOnePickle) {
  EXPECT_THAT(Refusal(Zip({{"archive/version", "3"}})), HasSubstr("has no data.pkl"));
  const std::string pickle = Pickle().BeginDict().EndDict();
  EXPECT_THAT(Refusal(Zip({{"a/data.pkl", pickle}, {"b/data.pkl", pickle}})),
              HasSubstr("two data.pkl"));
}

TEST_F(TorchFileTest, RefusesTheFormatFromBeforeTorch16) {
  EXPECT_THAT(Refusal(Pickle().Int(0x1950a86a20f9469c).Stop()), HasSubstr("not a zip archive"));
}

}  // namespace
}  // namespace sensorium
