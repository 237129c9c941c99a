// Molmo's preprocessing: against what the published reference made of 36 sizes of a formula picture
// and of the golden checkpoints' pictures (tests/data), and by properties on random sizes.
#include "runtime/media/molmo_image.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/runtime/media/media_files.h"

namespace sensorium {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int32_t kDropped = -100;

std::string TestData(const std::string& path) {
  return std::string(SENSORIUM_TEST_DATA) + "/" + path;
}

json ReadJson(const std::string& path) { return json::parse(std::ifstream(TestData(path))); }

// The picture whose preprocessing images/geometry.json holds.
RgbImage FormulaImage(int32_t width, int32_t height) {
  RgbImage image{width, height, {}};
  image.pixels.reserve(size_t{3} * width * height);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        image.pixels.push_back(static_cast<uint8_t>(3 * x + 5 * y + 85 * c + (x * y >> 6)));
      }
    }
  }
  return image;
}

RgbImage Uniform(int32_t width, int32_t height, uint8_t value) {
  return {width, height, std::vector<uint8_t>(size_t{3} * width * height, value)};
}

MolmoImageLayout LayOut(int32_t width, int32_t height, const MolmoImageConfig& config = {}) {
  auto layout = LayOutMolmoImage(width, height, config);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return layout.ok() ? *std::move(layout) : MolmoImageLayout{};
}

MolmoImageInputs Preprocess(const RgbImage& image, const MolmoImageConfig& config = {}) {
  auto inputs = PreprocessMolmoImage(image, config);
  EXPECT_TRUE(inputs.ok()) << inputs.status();
  return inputs.ok() ? *std::move(inputs) : MolmoImageInputs{};
}

float At(const MolmoImageInputs& inputs, int32_t crop, int32_t patch, int32_t element) {
  return inputs.pixels.at((size_t{1} * crop * inputs.patches_per_crop + patch) * inputs.patch_dim +
                          element);
}

std::vector<double> MaskRowSums(const MolmoImageInputs& inputs) {
  std::vector<double> sums;
  for (size_t i = 0; i < inputs.masks.size(); ++i) {
    if (i % inputs.patches_per_crop == 0) sums.push_back(0);
    sums.back() += inputs.masks[i];
  }
  return sums;
}

void ExpectMaskRowSums(const MolmoImageInputs& inputs, const json& want) {
  const std::vector<double> got = MaskRowSums(inputs);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i].get<double>(), 1e-4) << i;
}

// Tolerances per value: roundings of 2^-24 that mostly cancel. A wrong pixel column shows.
void ExpectPixelSums(const MolmoImageInputs& inputs, double want, double want_square) {
  double sum = 0, square_sum = 0;
  for (const double v : inputs.pixels) {
    sum += v;
    square_sum += v * v;
  }
  EXPECT_NEAR(sum, want, 1e-8 * static_cast<double>(inputs.pixels.size()));
  EXPECT_NEAR(square_sum, want_square, 2e-8 * static_cast<double>(inputs.pixels.size()));
}

// Every kPatch is one pooled vector's place, every other token nobody's.
void ExpectEveryPatchNamedOnce(const MolmoImageLayout& layout, const MolmoImageConfig& config) {
  ASSERT_EQ(layout.crops, 1 + layout.tile_rows * layout.tile_cols);
  ASSERT_EQ(layout.token_index.size(), size_t{1} * layout.crops * config.tokens_per_crop());
  std::vector<int32_t> named(layout.tokens.size());
  for (const int32_t position : layout.token_index) {
    if (position == kDropped) continue;
    ASSERT_GE(position, 1);  // BOS is 0
    ASSERT_LE(static_cast<size_t>(position), layout.tokens.size());
    ++named[position - 1];
  }
  for (size_t i = 0; i < named.size(); ++i) {
    ASSERT_EQ(named[i], layout.tokens[i] == ImageToken::kPatch) << "position " << i + 1;
  }
}

TEST(MolmoImageGoldenTest, EverySizeOfTheFormulaPictureIsTheReferences) {
  const json goldens = ReadJson("images/geometry.json");
  ASSERT_EQ(goldens.size(), 36);
  for (const json& golden : goldens) {
    const int32_t width = golden["width"], height = golden["height"];
    SCOPED_TRACE(testing::Message() << width << "x" << height);
    const MolmoImageInputs inputs = Preprocess(FormulaImage(width, height));
    const MolmoImageLayout& layout = inputs.layout;
    EXPECT_EQ(layout.tile_rows, golden["tiling"][0]);
    EXPECT_EQ(layout.tile_cols, golden["tiling"][1]);
    ASSERT_EQ(layout.crops, golden["crops"]);
    EXPECT_EQ(layout.tokens.size(), golden["image_tokens"]);
    int64_t index_sum = 0;
    std::vector<int32_t> kept(layout.crops);
    for (size_t i = 0; i < layout.token_index.size(); ++i) {
      if (layout.token_index[i] == kDropped) continue;
      index_sum += layout.token_index[i];
      ++kept[i / 144];
    }
    EXPECT_EQ(index_sum, golden["valid_index_sum"]);
    EXPECT_EQ(kept, golden["valid_per_crop"].get<std::vector<int32_t>>());
    ExpectMaskRowSums(inputs, golden["mask_row_sums"]);
    ExpectPixelSums(inputs, golden["pixel_sum"], golden["pixel_square_sum"]);
    for (const json& probe : golden["probes"]) {
      EXPECT_NEAR(At(inputs, probe[0], probe[1], probe[2]), probe[3].get<double>(), 2e-6) << probe;
    }
  }
}

class MolmoImageCheckpointTest : public testing::TestWithParam<const char*> {};

TEST_P(MolmoImageCheckpointTest, EveryPictureIsTheReferences) {
  const std::string folder = GetParam();
  const json fields = ReadJson(folder + "/preprocessor_config.json");
  const auto config = MolmoImageConfig::FromJson(fields.dump(), "preprocessor_config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  int pictures = 0;
  for (const json& golden : ReadJson(folder + "/cases.json")) {
    if (golden["image"].is_null()) continue;
    ++pictures;
    SCOPED_TRACE(golden["name"].get<std::string>());
    const auto image =
        DecodeImage(ReadBytes(TestData(folder + "/" + golden["image"].get<std::string>())), {});
    ASSERT_TRUE(image.ok()) << image.status();
    const MolmoImageInputs inputs = Preprocess(*image, *config);
    const MolmoImageLayout& layout = inputs.layout;
    ASSERT_EQ(layout.crops, golden["crops"]);
    std::vector<int32_t> index;
    for (const json& crop : golden["image_input_idx"]) {
      for (const int32_t position : crop) index.push_back(position);
    }
    EXPECT_EQ(layout.token_index, index);
    // The four image tokens have consecutive ids: start, end, patch, column.
    const auto prompt = golden["prompt_ids"].get<std::vector<int32_t>>();
    const int32_t start = prompt.at(1);
    const std::map<ImageToken, int32_t> ids = {{ImageToken::kStart, start},
                                               {ImageToken::kEnd, start + 1},
                                               {ImageToken::kPatch, start + 2},
                                               {ImageToken::kCol, start + 3}};
    std::vector<int32_t> tokens;
    for (const ImageToken token : layout.tokens) tokens.push_back(ids.at(token));
    ASSERT_GT(prompt.size(), 1 + tokens.size());
    EXPECT_EQ(tokens, std::vector(prompt.begin() + 1, prompt.begin() + 1 + tokens.size()));
    EXPECT_LT(prompt[1 + tokens.size()], start) << "an image token behind ours";
    ExpectMaskRowSums(inputs, golden["mask_row_sums"]);
    ExpectPixelSums(inputs, golden["pixel_sum"], golden["pixel_square_sum"]);
  }
  EXPECT_EQ(pictures, 4);
}

INSTANTIATE_TEST_SUITE_P(Families, MolmoImageCheckpointTest,
                         testing::Values("molmo-dense", "molmo-postnorm", "molmo-moe"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(MolmoLayoutTest, NamesEveryPatchOnceForRandomSizesAndOverlaps) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  int laid_out = 0;
  for (int i = 0; i < 400; ++i) {
    const auto upto = [&](int32_t n) { return static_cast<int32_t>(random() % (n + 1)); };
    MolmoImageConfig config;
    if (i % 2) {  // other geometries than the published one
      const int32_t pool = 1 + upto(2);
      config.tokens_per_side = 2 + upto(12);
      config.crop_size = config.tokens_per_side * pool * config.patch_size;
      config.overlap_left = upto(config.tokens_per_side / 2 - 1) * pool;
      config.overlap_right = upto(config.tokens_per_side / 2 - 1) * pool;
      config.max_crops = 1 + upto(35);
    }
    // Sides from 1 to 8192, small ones as often as large ones.
    const auto side = [&] { return 1 + upto((1 << upto(13)) - 1); };
    const int32_t width = side(), height = side();
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << width << "x" << height);
    const auto layout = LayOutMolmoImage(width, height, config);
    if (!layout.ok()) {
      ASSERT_THAT(std::string(layout.status().message()), HasSubstr("too thin"));
      ASSERT_GT(std::max(width, height), 100 * std::min(width, height) / 9);
      continue;
    }
    ++laid_out;
    ASSERT_LE(layout->tile_rows * layout->tile_cols, config.max_crops);
    ExpectEveryPatchNamedOnce(*layout, config);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(laid_out, 200);
}

TEST(MolmoLayoutTest, PositionsOf640x480AreTheReferences) {
  const MolmoImageLayout layout = LayOut(640, 480);
  EXPECT_EQ(layout.tile_rows, 2);
  EXPECT_EQ(layout.tile_cols, 3);
  std::vector<int32_t> first, last;
  for (int32_t crop = 0; crop < layout.crops; ++crop) {
    const auto begin = layout.token_index.begin() + crop * 144;
    first.push_back(*std::find_if(begin, begin + 144, [](int32_t p) { return p != kDropped; }));
    last.push_back(*std::max_element(begin, begin + 144));
  }
  EXPECT_THAT(first, ElementsAre(2, 160, 170, 178, 450, 460, 468));
  EXPECT_THAT(last, ElementsAre(156, 430, 438, 448, 720, 728, 738));
  const auto crop2 = layout.token_index.begin() + 2 * 144;
  EXPECT_THAT(std::vector(crop2, crop2 + 6), ElementsAre(-100, -100, 170, 171, 172, 173));
  EXPECT_EQ(layout.tokens[0], ImageToken::kStart);
  EXPECT_EQ(layout.tokens[13], ImageToken::kCol);   // position 14, behind the first row
  EXPECT_EQ(layout.tokens[157], ImageToken::kEnd);  // position 158
  EXPECT_EQ(layout.tokens[158], ImageToken::kStart);
  EXPECT_EQ(layout.tokens.back(), ImageToken::kEnd);
}

TEST(MolmoLayoutTest, MoreCropsAreAConfigAway) {
  MolmoImageConfig config;
  config.max_crops = 36;
  // 36 tiles in one column: 2 + 12 * 13 tokens, then 2 + (36 * 8 + 4) * 13.
  EXPECT_EQ(LayOut(300, 10000, config).tokens.size(), 3956);
}

TEST(MolmoLayoutTest, ThinPicturesAreRefusedWithBothSizes) {
  for (const auto& [width, height] : std::vector<std::pair<int32_t, int32_t>>{
           {1, 1000}, {1000, 1}, {2, 32768}, {32768, 60}, {1, 2'000'000'000}}) {
    const std::string size = std::to_string(width) + "x" + std::to_string(height);
    const absl::Status status = LayOutMolmoImage(width, height, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(size), HasSubstr("too thin"), HasSubstr("shrink to")));
  }
  const RgbImage thin = Uniform(1000, 1, 9);
  EXPECT_EQ(PreprocessMolmoImage(thin, {}).status(), LayOutMolmoImage(1000, 1, {}).status());
  // The thinnest that still has a pixel everywhere.
  EXPECT_TRUE(LayOutMolmoImage(336, 1, {}).ok());
}

TEST(MolmoLayoutTest, PicturesWithoutASizeAreRefused) {
  for (const auto& [width, height] :
       std::vector<std::pair<int32_t, int32_t>>{{0, 5}, {5, 0}, {-3, 5}, {5, -3}}) {
    const absl::Status status = LayOutMolmoImage(width, height, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::to_string(width) + "x" + std::to_string(height)));
  }
}

TEST(MolmoImageTest, APatchIsRowsOfRgbPixels) {
  const RgbImage image = FormulaImage(336, 336);  // no resize, no padding
  const MolmoImageConfig config;
  const MolmoImageInputs inputs = Preprocess(image);
  ASSERT_EQ(inputs.layout.crops, 2);
  ASSERT_EQ(inputs.patches_per_crop, 576);
  ASSERT_EQ(inputs.patch_dim, 588);
  for (int32_t y = 0; y < 336; ++y) {
    for (int32_t x = 0; x < 336; ++x) {
      for (int32_t c = 0; c < 3; ++c) {
        const float value = static_cast<float>(image.pixels[(y * 336 + x) * 3 + c]) / 255.0f;
        const float want = (value - config.mean[c]) / config.std[c];
        const int32_t patch = y / 14 * 24 + x / 14, element = (y % 14 * 14 + x % 14) * 3 + c;
        ASSERT_EQ(At(inputs, 0, patch, element), want) << y << " " << x << " " << c;
        ASSERT_EQ(At(inputs, 1, patch, element), want) << y << " " << x << " " << c;
      }
    }
  }
}

TEST(MolmoImageTest, NeighbouringCropsShareTheirOverlap) {
  const MolmoImageInputs inputs = Preprocess(FormulaImage(640, 480));
  for (int32_t row = 0; row < 24; ++row) {
    for (int32_t col = 0; col < 8; ++col) {    // 8 patches, 112 pixels
      for (int32_t e = 0; e < 588; e += 97) {  // tiles 1 and 2 are neighbours in a row, 1 and 4
        ASSERT_EQ(At(inputs, 1, row * 24 + 16 + col, e), At(inputs, 2, row * 24 + col, e));
        ASSERT_EQ(At(inputs, 1, (16 + col) * 24 + row, e), At(inputs, 4, col * 24 + row, e));
      }
    }
  }
}

TEST(MolmoImageTest, PaddingIsZeroBeforeItIsNormalised) {
  const MolmoImageInputs inputs = Preprocess(Uniform(640, 480, 255));
  for (int32_t c = 0; c < 3; ++c) {
    constexpr float kPadding[] = {-1.7922626f, -1.7520971f, -1.4802198f};
    EXPECT_NEAR(At(inputs, 0, 0, c), kPadding[c], 1e-6);
    EXPECT_GT(At(inputs, 0, 300, c), 1.9f);  // white
  }
}

TEST(MolmoImageTest, MasksOf640x480AreTheReferences) {
  const MolmoImageInputs inputs = Preprocess(Uniform(640, 480, 7));
  // Tiles at the left and right edge have 19 columns of padding: 14 are one patch, 5 of the next
  // leave 9/14 of it.
  for (const int32_t row : {0, 2, 3, 5}) {
    int32_t zero = 0, full = 0, partial = 0;
    for (int32_t p = 0; p < 576; ++p) {
      const float m = inputs.masks[row * 576 + p];
      zero += m == 0.0f;
      full += m == 1.0f;
      partial += m == 9.0f / 14.0f;
    }
    EXPECT_THAT((std::vector{zero, partial, full}), ElementsAre(24, 24, 528)) << "row " << row;
  }
  const auto row = [&](int32_t k) {
    return std::vector(inputs.masks.begin() + k * 576, inputs.masks.begin() + (k + 1) * 576);
  };
  EXPECT_THAT(row(1), Each(1.0f));
  EXPECT_THAT(row(4), Each(1.0f));
  EXPECT_THAT(row(6), Each(-1.0f));
}

TEST(MolmoImageTest, AMaskTellsTheNextCropsPaddingForRandomSizes) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 12; ++i) {
    const auto width = static_cast<int32_t>(60 + random() % 1400);
    const auto height = static_cast<int32_t>(60 + random() % 1400);
    SCOPED_TRACE(testing::Message() << width << "x" << height);
    const MolmoImageInputs inputs = Preprocess(Uniform(width, height, 255));
    const int32_t tiles = inputs.layout.crops - 1;
    ASSERT_EQ(inputs.pixels.size(), size_t{576} * 588 * (tiles + 1));
    ASSERT_EQ(inputs.masks.size(), size_t{576} * (tiles + 1));
    for (int32_t tile = 0; tile < tiles; ++tile) {
      for (int32_t p = 0; p < 576; ++p) {
        int32_t white = 0;
        for (int32_t e = 0; e < 588; e += 3) white += At(inputs, tile + 1, p, e) > 0;
        ASSERT_EQ(inputs.masks[tile * 576 + p], static_cast<float>(white) / 196.0f);
      }
    }
    for (int32_t p = 0; p < 576; ++p) ASSERT_EQ(inputs.masks[tiles * 576 + p], -1.0f);
  }
}

TEST(MolmoImageConfigTest, AnEmptyObjectMeansThePublishedPreprocessor) {
  const auto config = MolmoImageConfig::FromJson("{}", "preprocessor_config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->crop_size, 336);
  EXPECT_EQ(config->patches_per_side(), 24);
  EXPECT_EQ(config->tokens_per_crop(), 144);
  EXPECT_EQ(config->max_crops, 12);
  EXPECT_EQ(config->overlap_left, 4);
  EXPECT_EQ(config->overlap_right, 4);
  EXPECT_EQ(config->mean, MolmoImageConfig().mean);
}

TEST(MolmoImageConfigTest, EveryFieldIsRead) {
  const auto config = MolmoImageConfig::FromJson(R"({
      "base_image_input_size": [240, 240], "image_patch_size": 10, "image_token_length_h": 8,
      "image_token_length_w": 8, "max_crops": 36, "overlap_margins": [3, 6], "do_normalize": true,
      "image_mean": [0.5, 0.25, 0], "image_std": [1, 0.5, 2]})",
                                                 "p.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->crop_size, 240);
  EXPECT_EQ(config->patch_size, 10);
  EXPECT_EQ(config->tokens_per_side, 8);
  EXPECT_EQ(config->max_crops, 36);
  EXPECT_EQ(config->overlap_left, 3);
  EXPECT_EQ(config->overlap_right, 6);
  EXPECT_THAT(config->mean, ElementsAre(0.5f, 0.25f, 0.0f));
  EXPECT_THAT(config->std, ElementsAre(1.0f, 0.5f, 2.0f));
}

TEST(MolmoImageConfigTest, ErrorsNameTheFileTheFieldAndTheNumbers) {
  struct Case {
    const char *text, *field, *detail;
  };
  for (const Case& c : std::vector<Case>{
           {R"({"base_image_input_size": 336})", "base_image_input_size", "list of 2"},
           {R"({"base_image_input_size": [336]})", "base_image_input_size", "list of 2"},
           {R"({"base_image_input_size": [336, 224]})", "base_image_input_size", "336 by 224"},
           {R"({"base_image_input_size": [0, 0]})", "base_image_input_size", "is 0"},
           {R"({"image_patch_size": "14"})", "image_patch_size", "whole number"},
           {R"({"image_patch_size": 14.5})", "image_patch_size", "whole number"},
           {R"({"image_patch_size": 0})", "image_patch_size", "is 0"},
           {R"({"image_patch_size": 13})", "image_patch_size", "13, which does not divide"},
           {R"({"image_token_length_h": 7})", "image_token_length_h", "does not divide the 24"},
           {R"({"image_token_length_w": 6})", "image_token_length_w", "is 6; image_token_length_h"},
           {R"({"max_crops": 0})", "max_crops", "is 0; allowed are 1 to 1024"},
           {R"({"max_crops": 18446744073709551615})", "max_crops", "is 18446744073709551615"},
           {R"({"max_crops": null})", "max_crops", "whole number"},
           {R"({"overlap_margins": [4]})", "overlap_margins", "list of 2"},
           {R"({"overlap_margins": [-2, 4]})", "overlap_margins", "is -2"},
           {R"({"overlap_margins": [3, 4]})", "overlap_margins", "multiples of the pooling's 2"},
           {R"({"overlap_margins": [4, 3]})", "overlap_margins", "multiples of the pooling's 2"},
           {R"({"overlap_margins": [12, 12]})", "overlap_margins", "12 and 12"},
           {R"({"image_mean": [0.5, 0.5]})", "image_mean", "list of 3"},
           {R"({"image_mean": [0.5, 0.5, "x"]})", "image_mean", "list of 3"},
           {R"({"image_std": [0.5, 0, 0.5]})", "image_std", "out of range"},
           {R"({"image_std": [0.5, 1e300, 0.5]})", "image_std", "out of range"},
           {R"({"do_normalize": false})", "do_normalize", "only true"},
           {R"({"image_padding_mask": false})", "image_padding_mask", "only true"}}) {
    const absl::Status status = MolmoImageConfig::FromJson(c.text, "some/p.json").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("some/p.json"), HasSubstr(c.field), HasSubstr(c.detail)))
        << c.text;
  }
  for (const char* text : {"", "{", "[]", "3", "{\"a\": \"\xff\"}"}) {
    const absl::Status status = MolmoImageConfig::FromJson(text, "some/p.json").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("some/p.json"), HasSubstr("JSON")));
  }
}

}  // namespace
}  // namespace sensorium
