#include "runtime/weights/checkpoint.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/weights/file_writers.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kOnes = Bytes<float>({1, 1});
const StoredTensor kA{"a", "F32", {2}, kOnes}, kB{"b", "F32", {1, 2}, kOnes};

// A checkpoint folder to which a test adds weights.
class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() { dir_.Write("config.json", "{\"model_type\":\"test\"}"); }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() const { return Checkpoint::Open(dir_.path()); }
  // The message with which the folder is refused.
  std::string Refusal() const {
    const auto checkpoint = Open();
    EXPECT_FALSE(checkpoint.ok());
    return std::string(checkpoint.status().message());
  }
  void WriteIndex(const std::string& weight_map) const {
    dir_.Write("model.safetensors.index.json", "{\"weight_map\":" + weight_map + "}");
  }

  TempDir dir_;
};

// The type, the alignment, and that all numbers are finite and of a weight's size.
void ExpectSaneTensor(const TensorInfo& tensor, DType dtype) {
  EXPECT_EQ(tensor.dtype, dtype) << tensor.name;
  ASSERT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % SizeOf(dtype), 0u) << tensor.name;
  const size_t elements = tensor.bytes / SizeOf(dtype);
  ASSERT_GT(elements, 0u) << tensor.name;
  for (size_t i = 0; i < elements; ++i) {
    if (dtype == DType::kFloat32) {
      ASSERT_LT(std::fabs(reinterpret_cast<const float*>(tensor.data)[i]), 1e4f) << tensor.name;
    } else {
      const uint16_t bits = reinterpret_cast<const uint16_t*>(tensor.data)[i] & 0x7fff;
      ASSERT_LT(bits, dtype == DType::kFloat16 ? 0x7c00 : 0x461c) << tensor.name;  // 1e4 as bf16
    }
  }
}

TEST(PublishedCheckpointsTest, LoadInEveryLayoutAndType) {
  const struct {
    std::string dir;
    DType dtype;
    const char* tensor;
    std::initializer_list<int64_t> shape;
  } kCases[] = {
      {SENSORIUM_TEST_DATA "/molmo-dense",
       DType::kBFloat16,
       "model.transformer.blocks.0.att_proj.bias",
       {256}},
      {SENSORIUM_TEST_DATA "/molmo-postnorm",
       DType::kFloat32,
       "model.transformer.blocks.0.att_proj.weight",
       {384, 128}},
      {SENSORIUM_TEST_DATA "/molmo-moe",
       DType::kFloat32,
       "model.vision_backbone.pad_embed",
       {2, 128}},
      {SENSORIUM_TEST_DATA "/whisper-v3",
       DType::kFloat16,
       "model.decoder.embed_positions.weight",
       {448, 128}},
      {SENSORIUM_TEST_DATA "/whisper-en",
       DType::kFloat32,
       "model.decoder.embed_positions.weight",
       {448, 128}},
      {SENSORIUM_MODELS "/molmo-mini",
       DType::kBFloat16,
       "model.vision_backbone.pad_embed",
       {2, 256}},
      {SENSORIUM_MODELS "/whisper-mini",
       DType::kFloat16,
       "model.decoder.embed_positions.weight",
       {128, 192}},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.dir);
    const auto checkpoint = Checkpoint::Open(c.dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto view = (*checkpoint)->Get(c.tensor, c.shape);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(view->dtype(), c.dtype);
    ExpectSaneTensor(*(*checkpoint)->Find(c.tensor), c.dtype);
  }
}

TEST_F(CheckpointTest, LoadsEveryTypeFromOneFile) {
  dir_.Write("model.safetensors",
             Safetensors({{"f32", "F32", {2}, Bytes<float>({1.5f, -2.f})},
                          {"f16", "F16", {1, 2}, Bytes<uint16_t>({0x3c00, 0xc000})},
                          {"bf16", "BF16", {1}, Bytes<uint16_t>({0x4049})}}));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config()["model_type"], "test");
  EXPECT_EQ((*checkpoint)->total_bytes(), 14u);
  const auto f32 = (*checkpoint)->Get("f32", {2});
  ASSERT_TRUE(f32.ok()) << f32.status();
  EXPECT_EQ(f32->as<const float>()[1], -2.f);
  const auto f16 = (*checkpoint)->Get("f16", {1, 2});
  ASSERT_TRUE(f16.ok()) << f16.status();
  EXPECT_EQ(f16->dtype(), DType::kFloat16);
  EXPECT_EQ(f16->as<const uint16_t>()[1], 0xc000);
  const auto bf16 = (*checkpoint)->Get("bf16", {1});
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  EXPECT_EQ(bf16->dtype(), DType::kBFloat16);
  EXPECT_TRUE((*checkpoint)->CheckAllUsed({}).ok());
}

TEST_F(CheckpointTest, LoadsShardsBehindAnIndex) {
  dir_.Write("one.safetensors", Safetensors({kA}));
  dir_.Write("two.safetensors", Safetensors({kB}));
  WriteIndex(R"({"a":"one.safetensors","b":"two.safetensors"})");
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->Get("a", {2}).ok());
  EXPECT_TRUE((*checkpoint)->Get("b", {1, 2}).ok());
}

TEST_F(CheckpointTest, LoadsShardedTorchFiles) {
  const auto shard = [](const std::string& name, float value) {
    return TorchFile(Pickle().BeginDict().Text(name).Tensor({.elements = 1}, 0, {1}, {1}).EndDict(),
                     {{"0", Bytes<float>({value})}});
  };
  dir_.Write("pytorch_model-00001-of-00002.bin", shard("a", 3.f));
  dir_.Write("pytorch_model-00002-of-00002.bin", shard("b", 4.f));
  dir_.Write("pytorch_model.bin.index.json",
             R"({"metadata":{"total_size":8},"weight_map":{"a":"pytorch_model-00001-of-00002.bin",
                 "b":"pytorch_model-00002-of-00002.bin"}})");
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Get("b", {1})->as<const float>()[0], 4.f);
}

TEST_F(CheckpointTest, PrefersOneSafetensorsFileAsTransformersDoes) {
  dir_.Write("model.safetensors", Safetensors({kA}));
  dir_.Write("pytorch_model.bin", "never read");
  dir_.Write("pytorch_model.bin.index.json", "never read");
  EXPECT_TRUE(Open().ok()) << Open().status();
}

TEST_F(CheckpointTest, SaysWhatItLookedForWhenThereAreNoWeights) {
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Refusal(), AllOf(HasSubstr(dir_.path()), HasSubstr("looked for model.safetensors")));
  EXPECT_EQ(Checkpoint::Open(dir_.path() + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, RefusesADeepOrDamagedConfig) {
  dir_.Write("model.safetensors", Safetensors({kA}));
  dir_.Write("config.json",
             "{\"a\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}");
  EXPECT_THAT(Refusal(), HasSubstr("config.json: nested deeper than 64"));
  dir_.Write("config.json", "{\"a\":");
  EXPECT_THAT(Refusal(), HasSubstr("config.json: not valid JSON"));
  dir_.Write("config.json", "{}");
  dir_.Write("generation_config.json", "[]");
  EXPECT_THAT(Refusal(), HasSubstr("generation_config.json: not a JSON object"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatNamesAMissingFile) {
  WriteIndex(R"({"a":"gone.safetensors"})");
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("/gone.safetensors: No such file"),
                               HasSubstr("model.safetensors.index.json names it")));
}

TEST_F(CheckpointTest, RefusesAnIndexThatLeavesTheFolder) {
  for (const char* name :
       {"../x", "/etc/passwd", "..", ".", "", "sub/x.safetensors", "a\\u0000b", ".hidden"}) {
    WriteIndex(std::string("{\"a\":\"") + name + "\"}");
    EXPECT_THAT(Refusal(), HasSubstr("is no plain file name")) << name;
  }
}

TEST_F(CheckpointTest, RefusesAnIndexOfTheWrongForm) {
  dir_.Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(Refusal(), HasSubstr("weight_map is missing"));
  WriteIndex("[]");
  EXPECT_THAT(Refusal(), HasSubstr("weight_map is missing"));
  WriteIndex(R"({"a":1})");
  EXPECT_THAT(Refusal(), HasSubstr("'a' is in no file"));
}

TEST_F(CheckpointTest, RefusesShardsThatDisagreeWithTheIndex) {
  dir_.Write("one.safetensors", Safetensors({kA}));
  dir_.Write("two.safetensors", Safetensors({kA, kB}));
  WriteIndex(R"({"a":"one.safetensors","b":"two.safetensors"})");  // 'a' is in both
  EXPECT_THAT(Refusal(), HasSubstr("two.safetensors: tensor 'a' is not where"));
  WriteIndex(R"({"a":"one.safetensors","c":"one.safetensors"})");
  EXPECT_THAT(Refusal(), HasSubstr("one.safetensors: tensor 'c' is missing"));
}

TEST_F(CheckpointTest, NamesTheMissingTensorAndItsShape) {
  dir_.Write("model.safetensors", Safetensors({kA}));
  const auto missing = (*Open())->Get("w", {3, 4}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(),
              AllOf(HasSubstr(dir_.path()), HasSubstr("tensor 'w' of shape [3, 4] is missing")));
}

TEST_F(CheckpointTest, NamesTensorBothShapesAndFileWhenTheyDiffer) {
  dir_.Write("model.safetensors", Safetensors({kA}));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& status :
       {(*checkpoint)->Get("a", {3}).status(), (*checkpoint)->Get("a", {2, 1}).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("model.safetensors: tensor 'a' has shape [2]"),
                                        HasSubstr("expected [")));
  }
  EXPECT_FALSE((*checkpoint)->CheckAllUsed({}).ok());  // a tensor refused is not one used
}

TEST_F(CheckpointTest, ListsTensorsThatNobodyAskedFor) {
  dir_.Write("model.safetensors", Safetensors({kA, kB, {"extra.c", "F32", {2}, kOnes}}));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_TRUE((*checkpoint)->Get("a", {2}).ok());
  EXPECT_THAT((*checkpoint)->CheckAllUsed({}).message(),
              HasSubstr("2 of 3 tensors are unexpected: 'b', 'extra.c'"));
  const std::string_view prefixes[] = {"extra."};
  EXPECT_THAT((*checkpoint)->CheckAllUsed(prefixes).message(),
              HasSubstr("1 of 3 tensors are unexpected: 'b'"));
}

TEST_F(CheckpointTest, AlignsTensorsThatTheFileDoesNot) {
  // A header of odd length puts the data at an odd address.
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  dir_.Write("model.safetensors",
             SafetensorsOf(header + (header.size() % 2 ? "" : " "), Bytes<float>({5.f, 6.f})));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto a = (*checkpoint)->Get("a", {2});
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a->bytes()) % 4, 0u);
  EXPECT_EQ(a->as<const float>()[1], 6.f);
}

// Finds the archive whose storage lies at an odd address, by the length of an entry before it.
std::string UnalignedTorchFile(const std::string& pickle, const std::string& storage) {
  for (std::string padding;; padding += 'x') {
    const std::string file = Zip(
        {{"archive/" + padding, ""}, {"archive/data.pkl", pickle}, {"archive/data/0", storage}});
    if (file.find(storage) % 2 == 1) return file;
  }
}

TEST_F(CheckpointTest, CopiesUnalignedTensorsNoLargerThanTheirFile) {
  constexpr int64_t kElements = 20'000;
  const std::string storage(4 * kElements, '\1');
  const auto views = [&](int count, bool tied) {
    Pickle pickle;
    pickle.BeginDict();
    for (int i = 0; i < count; ++i) {
      pickle.Text(std::to_string(i))
          .Tensor({.elements = kElements}, tied ? 0 : i, {kElements - (tied ? 0 : i)}, {1});
    }
    return UnalignedTorchFile(pickle.EndDict(), storage);
  };
  dir_.Write("pytorch_model.bin", views(50, /*tied=*/false));
  EXPECT_THAT(Refusal(), HasSubstr("unaligned tensors overlap"));
  dir_.Write("pytorch_model.bin", views(50, /*tied=*/true));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Find("0")->data, (*checkpoint)->Find("49")->data);
}

}  // namespace
}  // namespace sensorium
