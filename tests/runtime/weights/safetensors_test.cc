#include "runtime/weights/safetensors.h"

#include <filesystem>
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

class SafetensorsTest : public testing::Test {
 protected:
  absl::StatusOr<std::vector<TensorInfo>> Read(std::string_view bytes) {
    auto file = MappedFile::Open(dir_.Write("model.safetensors", bytes));
    if (!file.ok()) return file.status();
    file_ = *std::move(file);
    return ReadSafetensors(*file_);
  }
  // The message with which a file is refused; it names the file.
  std::string Refusal(std::string_view bytes) {
    const auto tensors = Read(bytes);
    EXPECT_FALSE(tensors.ok());
    EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(tensors.status().message(), HasSubstr("model.safetensors"));
    return std::string(tensors.status().message());
  }
  // One float32 tensor 'a' whose header fields are given, over `data_bytes` of data.
  std::string RefusalOf(const std::string& shape, const std::string& offsets, size_t data_bytes,
                        const std::string& dtype = "\"F32\"") {
    return Refusal(SafetensorsOf("{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape +
                                     ",\"data_offsets\":" + offsets + "}}",
                                 std::string(data_bytes, '\0')));
  }

  TempDir dir_;
  std::unique_ptr<MappedFile> file_;
};

TEST_F(SafetensorsTest, ReadsNamesShapesTypesAndBytes) {
  const auto tensors = Read(Safetensors({{"a", "F32", {2, 1}, Bytes<float>({1.5f, -2.f})},
                                         {"b", "F16", {3}, Bytes<uint16_t>({0x3c00, 0, 0x8000})},
                                         {"c", "BF16", {1}, Bytes<uint16_t>({0x3f80})},
                                         {"d", "F32", {}, Bytes<float>({7.f})},
                                         {"e", "F32", {0, 4}, ""},
                                         {"f", "I8", {1, 3}, Bytes<int8_t>({-128, 0, 127})},
                                         {"g", "F8_E4M3", {2}, Bytes<uint8_t>({0x38, 0xfe})}}));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 7u);
  const auto check = [&](size_t i, const char* name, DType dtype, std::vector<int64_t> shape,
                         const std::string& bytes) {
    const TensorInfo& t = (*tensors)[i];
    EXPECT_EQ(t.name, name);
    EXPECT_EQ(t.dtype, dtype);
    EXPECT_EQ(t.shape, shape);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(t.data), t.bytes), bytes);
  };
  check(0, "a", DType::kFloat32, {2, 1}, Bytes<float>({1.5f, -2.f}));
  check(1, "b", DType::kFloat16, {3}, Bytes<uint16_t>({0x3c00, 0, 0x8000}));
  check(2, "c", DType::kBFloat16, {1}, Bytes<uint16_t>({0x3f80}));
  check(3, "d", DType::kFloat32, {}, Bytes<float>({7.f}));
  check(4, "e", DType::kFloat32, {0, 4}, "");
  check(5, "f", DType::kInt8, {1, 3}, Bytes<int8_t>({-128, 0, 127}));
  check(6, "g", DType::kFloat8E4M3, {2}, Bytes<uint8_t>({0x38, 0xfe}));
}

TEST_F(SafetensorsTest, RefusesEveryPrefixOfAFile) {
  const std::string whole = Safetensors(
      {{"a", "F32", {2}, Bytes<float>({1.f, 2.f})}, {"b", "F16", {1}, Bytes<uint16_t>({1})}});
  ASSERT_TRUE(Read(whole).ok());
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_FALSE(Read(whole.substr(0, n)).ok()) << n << " of " << whole.size() << " bytes";
  }
  EXPECT_THAT(Refusal(whole + "x"), HasSubstr("the tensors end at byte 10 of 11"));
}

TEST_F(SafetensorsTest, RefusesAHeaderLongerThanTheFile) {
  EXPECT_THAT(Refusal(Bytes<uint64_t>({3}) + "{}"), HasSubstr("claims 3 bytes; the file has 2"));
  EXPECT_THAT(Refusal(Bytes<uint64_t>({~0ull}) + "{}"), HasSubstr("claims 18446744073709551615"));
}

TEST_F(SafetensorsTest, RefusesAHeaderLongerThanTheFormatAllows) {
  const std::string path = dir_.Write("model.safetensors", Bytes<uint64_t>({100'000'001}));
  std::filesystem::resize_file(path, 100'000'009);  // sparse: nothing is written
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(ReadSafetensors(**file).status().message(), HasSubstr("the limit is 100000000"));
}

TEST_F(SafetensorsTest, RefusesAHeaderThatIsNoJsonObject) {
  for (const char* header : {"", "{", "[]", "null", "{}{}", "{\"a\":}", "{\"a\":\"\xff\"}"}) {
    EXPECT_THAT(Refusal(SafetensorsOf(header, "")), HasSubstr("header: ")) << header;
  }
}

TEST_F(SafetensorsTest, RefusesADeepHeader) {
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(Refusal(SafetensorsOf("{\"a\":" + deep, "")), HasSubstr("nested deeper than 8"));
}

TEST_F(SafetensorsTest, RefusesOffsetsBehindTheEnd) {
  EXPECT_THAT(RefusalOf("[2]", "[0,8]", 7), HasSubstr("tensor 'a' lies at bytes 0 to 8 of 7"));
  EXPECT_THAT(RefusalOf("[2]", "[8,0]", 8), HasSubstr("tensor 'a' lies at bytes 8 to 0 of 8"));
  EXPECT_THAT(RefusalOf("[1]", "[18446744073709551612,18446744073709551615]", 8),
              HasSubstr("lies at bytes"));
}

TEST_F(SafetensorsTest, RefusesOffsetsThatAreNoIntegers) {
  for (const char* offsets : {"[-8,0]", "[0.0,8.0]", "[\"0\",\"8\"]", "[null,8]", "[[0],8]",
                              "[0,99999999999999999999]"}) {
    EXPECT_THAT(RefusalOf("[2]", offsets, 8), HasSubstr("tensor 'a'")) << offsets;
  }
  for (const char* offsets : {"[]", "[0]", "[0,8,8]", "8", "null", "{}"}) {
    EXPECT_THAT(RefusalOf("[2]", offsets, 8), HasSubstr("tensor 'a' lacks")) << offsets;
  }
}

TEST_F(SafetensorsTest, RefusesSizesThatDoNotFitTheShape) {
  EXPECT_THAT(RefusalOf("[3]", "[0,8]", 8),
              AllOf(HasSubstr("tensor 'a' of shape [3]"), HasSubstr("takes 12 bytes"),
                    HasSubstr("give 8")));
}

TEST_F(SafetensorsTest, RefusesShapesWhoseProductOverflows) {
  EXPECT_THAT(RefusalOf("[4294967296,4294967296]", "[0,0]", 0), HasSubstr("impossible shape"));
  EXPECT_THAT(RefusalOf("[0,9223372036854775807]", "[0,0]", 0), HasSubstr("impossible shape"));
  EXPECT_THAT(RefusalOf("[9223372036854775808]", "[0,0]", 0), HasSubstr("not of integers"));
  EXPECT_THAT(RefusalOf("[-1]", "[0,0]", 0), HasSubstr("not of integers"));
  EXPECT_THAT(RefusalOf("[1.5]", "[0,4]", 4), HasSubstr("not of integers"));
  EXPECT_THAT(RefusalOf("[1,1,1,1,1]", "[0,4]", 4), HasSubstr("has 5 axes; the limit is 4"));
}

TEST_F(SafetensorsTest, RefusesTypesItDoesNotKnow) {
  EXPECT_THAT(RefusalOf("[1]", "[0,8]", 8, "\"I64\""), HasSubstr("tensor 'a' has dtype 'I64'"));
  EXPECT_THAT(RefusalOf("[1]", "[0,8]", 8, "7"), HasSubstr("tensor 'a' lacks dtype"));
}

TEST_F(SafetensorsTest, RefusesTensorsThatOverlap) {
  EXPECT_THAT(Refusal(SafetensorsOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                                        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                                    std::string(12, '\0'))),
              HasSubstr("tensor 'b' overlaps"));
}

TEST_F(SafetensorsTest, RefusesBytesThatNoTensorHas) {
  EXPECT_THAT(RefusalOf("[1]", "[4,8]", 8), HasSubstr("bytes 0 to 4 belong to no tensor"));
}

TEST_F(SafetensorsTest, RefusesANameThatAppearsTwice) {
  const std::string entry = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  EXPECT_THAT(Refusal(SafetensorsOf("{" + entry + "," + entry + "}", "1234")),
              HasSubstr("the name 'a' appears twice"));
}

TEST_F(SafetensorsTest, EscapesAndCutsNamesInMessages) {
  const std::string message =
      Refusal(SafetensorsOf("{\"\\u001b[2J" + std::string(5000, 'x') + "\":1}", ""));
  EXPECT_THAT(message, HasSubstr("\\033[2Jxx"));
  EXPECT_LT(message.size(), 500u);
}

}  // namespace
}  // namespace sensorium
