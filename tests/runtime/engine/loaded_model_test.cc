// What a checkpoint directory may get wrong beside its weights: refused at load, by file and
// numbers.
#include "runtime/engine/loaded_model.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/cpu/cpu_backend.h"

namespace sensorium {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using Json = nlohmann::ordered_json;

class LoadedModelTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) /
           (std::string("loaded_model_") +
            testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  // A directory whose files are those of the bundled model `name`.
  void Take(const std::string& name) {
    for (const auto& file : fs::directory_iterator(std::string(SENSORIUM_MODELS) + "/" + name)) {
      fs::create_symlink(file.path(), dir_ / file.path().filename());
    }
  }
  void Write(const std::string& file, const std::string& text) {
    fs::remove(dir_ / file);
    std::ofstream(dir_ / file) << text;
  }
  void Change(const std::string& file, const std::function<void(Json&)>& change) {
    Json json = Json::parse(std::ifstream(dir_ / file));
    change(json);
    Write(file, json.dump());
  }
  absl::Status Load() {
    auto backend = CpuBackend::Create({.threads = 1});
    CHECK(backend.ok()) << backend.status();
    return LoadedModel::Load("test", dir_.string(), **backend, nullptr).status();
  }
  void ExpectRefused(const std::vector<std::string>& parts) {
    const absl::Status status = Load();
    EXPECT_FALSE(status.ok());
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }
  static void AddToken(Json& tokenizer, int id) {
    Json token = tokenizer["added_tokens"].back();
    token["id"] = id;
    token["content"] = "<|beyond|>";
    tokenizer["added_tokens"].push_back(token);
  }

  fs::path dir_;
};

TEST_F(LoadedModelTest, ATokenBeyondMolmosEmbeddingIsRefused) {
  Take("molmo-mini");
  ASSERT_TRUE(Load().ok());
  const Json config = Json::parse(std::ifstream(dir_ / "config.json"));
  const int rows = config.value("embedding_size", config["vocab_size"].get<int>()) +
                   config.value("additional_vocab_size", 128);
  Change("tokenizer.json", [&](Json& json) { AddToken(json, rows); });
  ExpectRefused({"config.json", "largest id is " + std::to_string(rows),
                 "has " + std::to_string(rows) + " rows"});
}

TEST_F(LoadedModelTest, AnEndOfAnswerBeyondMolmosEmbeddingIsRefused) {
  Take("molmo-mini");
  Change("generation_config.json", [](Json& json) { json["eos_token_id"] = {637, 1 << 20}; });
  ExpectRefused({"config.json", "eos_token_id is 1048576", "rows"});
}

TEST_F(LoadedModelTest, ATokenBeyondWhispersVocabularyIsRefused) {
  Take("whisper-mini");
  ASSERT_TRUE(Load().ok());
  const int vocab = Json::parse(std::ifstream(dir_ / "config.json"))["vocab_size"];
  Change("tokenizer.json", [&](Json& json) { AddToken(json, vocab); });
  ExpectRefused({"config.json", "largest id is " + std::to_string(vocab),
                 "vocab_size is " + std::to_string(vocab)});
}

TEST_F(LoadedModelTest, AnOddTransformIsRefused) {
  Take("whisper-mini");
  Change("preprocessor_config.json", [](Json& json) { json["n_fft"] = 401; });
  ExpectRefused({"preprocessor_config.json", "n_fft is 401"});
}

TEST_F(LoadedModelTest, AHopThatDoesNotMakeTheEncodersFramesIsRefused) {
  Take("whisper-mini");
  Change("preprocessor_config.json", [](Json& json) { json["hop_length"] = 200; });
  ExpectRefused({"preprocessor_config.json", "hop_length 200 makes 640 frames", "takes 800"});
  Change("preprocessor_config.json", [](Json& json) {
    json["hop_length"] = 160;
    json["chunk_length"] = 30;
  });
  ExpectRefused({"chunk_length 30", "makes 3000 frames", "takes 800"});
}

TEST_F(LoadedModelTest, APreprocessorFileThatIsNoJsonIsRefused) {
  for (const char* model : {"whisper-mini", "molmo-mini"}) {
    SCOPED_TRACE(model);
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    Take(model);
    Write("preprocessor_config.json", "{\"n_fft\": 400,");
    ExpectRefused({"preprocessor_config.json", "not valid JSON"});
    Write("preprocessor_config.json", "[]");
    ExpectRefused({"preprocessor_config.json", "not a JSON object"});
    Write("preprocessor_config.json", std::string(1000, '[') + std::string(1000, ']'));
    ExpectRefused({"preprocessor_config.json"});
  }
}

TEST_F(LoadedModelTest, WithoutAPreprocessorFileThePublishedFrontEndIsUsed) {
  Take("whisper-mini");
  fs::remove(dir_ / "preprocessor_config.json");
  EXPECT_TRUE(Load().ok());
}

// The header of a safetensors file and where its data begin.
struct Header {
  Json json;
  size_t data_at;
};
Header ReadHeader(const std::string& file) {
  uint64_t bytes = 0;
  std::memcpy(&bytes, file.data(), 8);
  return {Json::parse(file.substr(8, bytes)), static_cast<size_t>(8 + bytes)};
}

// A linear, a table and a norm of a checkpoint that somebody quantised: half the bytes of a float16
// tensor are as many int8 or float8.
TEST_F(LoadedModelTest, AQuantisedTensorIsRefusedByNameWithWhatIsSupported) {
  for (const char* tensor :
       {"model.decoder.layers.1.fc1.weight", "model.decoder.embed_tokens.weight",
        "model.encoder.conv1.weight", "model.decoder.layer_norm.weight"}) {
    for (const auto& [stored, name] :
         {std::pair("I8", "weights of int8"), std::pair("F8_E4M3", "weights of float8_e4m3")}) {
      fs::remove_all(dir_);
      fs::create_directories(dir_);
      Take("whisper-mini");
      std::ostringstream text;
      text << std::ifstream(dir_ / "model.safetensors", std::ios::binary).rdbuf();
      const std::string file = text.str();
      auto [header, data_at] = ReadHeader(file);
      // Every tensor anew, behind the one before it.
      std::string data;
      for (auto& [key, entry] : header.items()) {
        if (key == "__metadata__") continue;
        const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
        size_t bytes = end - begin;
        if (key == tensor) {
          ASSERT_EQ(entry["dtype"], "F16");
          entry["dtype"] = stored;
          bytes /= 2;
        }
        entry["data_offsets"] = {data.size(), data.size() + bytes};
        data += file.substr(data_at + begin, bytes);
      }
      const std::string json = header.dump();
      const uint64_t json_bytes = json.size();
      Write("model.safetensors",
            std::string(reinterpret_cast<const char*>(&json_bytes), 8) + json + data);
      EXPECT_EQ(Load().code(), absl::StatusCode::kInvalidArgument);
      ExpectRefused({"model.safetensors", std::string("tensor '") + tensor + "'", name,
                     "it takes float32, bfloat16 and float16"});
    }
  }
}

}  // namespace
}  // namespace sensorium
