#include "server/config.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

class ConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<Config> Load(const std::string& text) {
    std::ofstream(path_) << text;
    return LoadConfig(path_);
  }
  std::string Error(const std::string& text) {
    const absl::StatusOr<Config> config = Load(text);
    EXPECT_FALSE(config.ok()) << text;
    return config.ok() ? "" : std::string(config.status().message());
  }
  ~ConfigTest() override { std::filesystem::remove(path_); }

  const std::string path_ =
      (std::filesystem::path(::testing::TempDir()) /
       (std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + ".yaml"))
          .string();
};

TEST_F(ConfigTest, TheDemoFileStatesEveryDefault) {
  const absl::StatusOr<Config> demo =
      LoadConfig(std::string(SENSORIUM_SOURCE_DIR) + "/config/demo.yaml");
  ASSERT_TRUE(demo.ok()) << demo.status();
  ASSERT_EQ(demo->engine.models.size(), 2u);
  EXPECT_EQ(demo->engine.models[0].name, "molmo-mini");
  EXPECT_TRUE(std::filesystem::exists(demo->engine.models[0].path + "/config.json"));
  const Config defaults;
  EXPECT_EQ(demo->server.listen, defaults.server.listen);
  EXPECT_EQ(demo->server.max_message_bytes, defaults.server.max_message_bytes);
  EXPECT_EQ(demo->server.max_concurrent_calls, defaults.server.max_concurrent_calls);
  EXPECT_EQ(demo->server.drain_delay_seconds, defaults.server.drain_delay_seconds);
  EXPECT_EQ(demo->server.drain_seconds, defaults.server.drain_seconds);
  EXPECT_EQ(demo->backend.device, defaults.backend.device);
  EXPECT_EQ(demo->backend.dtype, defaults.backend.dtype);
  EXPECT_EQ(demo->backend.cpu_level, defaults.backend.cpu_level);
  EXPECT_EQ(demo->backend.memory_share, defaults.backend.memory_share);
  EXPECT_EQ(demo->backend.cuda_graphs, defaults.backend.cuda_graphs);
  EXPECT_EQ(demo->backend.threads, defaults.backend.threads);
  EXPECT_EQ(demo->backend.pin_threads, defaults.backend.pin_threads);
  EXPECT_EQ(demo->engine.kv_cache_bytes, defaults.engine.kv_cache_bytes);
  EXPECT_EQ(demo->engine.block_tokens, defaults.engine.block_tokens);
  EXPECT_EQ(demo->engine.max_batch_tokens, defaults.engine.max_batch_tokens);
  EXPECT_EQ(demo->engine.max_batch_seqs, defaults.engine.max_batch_seqs);
  EXPECT_EQ(demo->engine.max_encode_units, defaults.engine.max_encode_units);
  EXPECT_EQ(demo->engine.max_waiting, defaults.engine.max_waiting);
  EXPECT_EQ(demo->engine.preparation_threads, defaults.engine.preparation_threads);
  EXPECT_EQ(demo->engine.default_max_tokens, defaults.engine.default_max_tokens);
  EXPECT_EQ(demo->engine.max_tokens_limit, defaults.engine.max_tokens_limit);
  EXPECT_EQ(demo->engine.max_media_bytes, defaults.engine.max_media_bytes);
  EXPECT_EQ(demo->engine.image_limits.max_bytes, defaults.engine.image_limits.max_bytes);
  EXPECT_EQ(demo->engine.image_limits.max_pixels, defaults.engine.image_limits.max_pixels);
  EXPECT_EQ(demo->engine.audio_limits.max_bytes, defaults.engine.audio_limits.max_bytes);
  EXPECT_EQ(demo->engine.audio_limits.max_seconds, defaults.engine.audio_limits.max_seconds);
  EXPECT_EQ(demo->engine.media, defaults.engine.media);
  EXPECT_EQ(demo->log_level, defaults.log_level);
}

TEST_F(ConfigTest, ReadsUnitsAndResolvesPathsBesideTheFile) {
  const absl::StatusOr<Config> config = Load(
      "models:\n  - path: some/model\n  - {name: other, path: /far/away}\n"
      "engine: {kv_cache_mib: 3}\nlimits: {image_megapixels: 0.5}\n");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->engine.models[0].name, "model");
  EXPECT_EQ(std::filesystem::path(config->engine.models[0].path).parent_path(),
            std::filesystem::path(path_).parent_path() / "some");
  EXPECT_EQ(config->engine.models[1].path, "/far/away");
  EXPECT_EQ(config->engine.kv_cache_bytes, size_t{3} << 20);
  EXPECT_EQ(config->engine.image_limits.max_pixels, 500'000);
}

TEST_F(ConfigTest, NamesFileLineAndKeyOfEveryMistake) {
  const std::string models = "models: [{path: a}]\n";
  EXPECT_THAT(Error(models + "sever: {}\n"), HasSubstr(":2: 'sever' is no key; there are "));
  EXPECT_THAT(Error(models + "server:\n  listn: x\n"), HasSubstr(":3: 'server.listn' is no key"));
  EXPECT_THAT(Error(models + "engine: {max_waiting: -1}\n"),
              HasSubstr("engine.max_waiting is -1; allowed are 0 to "));
  EXPECT_THAT(Error(models + "engine: {max_waiting: many}\n"), HasSubstr("must be a number"));
  EXPECT_THAT(Error(models + "engine: {max_waiting: 1.5}\n"), HasSubstr("it must be whole"));
  EXPECT_THAT(Error(models + "engine: {max_waiting: .nan}\n"), HasSubstr("engine.max_waiting is"));
  EXPECT_THAT(Error(models + "engine: {block_tokens: 17}\n"), HasSubstr("multiple of 16"));
  EXPECT_THAT(Error(models + "engine: 3\n"), HasSubstr("must be keys with values"));
  EXPECT_THAT(Error(models + "log_level: loud\n"), HasSubstr("'loud'; there are debug"));
  EXPECT_THAT(Error(models + "device: {pin_threads: 7}\n"), HasSubstr("true or false"));
  EXPECT_THAT(Error(models + "device: {media: gpu}\n"),
              HasSubstr(":2: device.media is 'gpu'; there are auto, host and device"));
  EXPECT_THAT(Error(models + "engine: {max_waiting: 1, max_waiting: 2}\n"),
              HasSubstr("is given twice"));
  EXPECT_THAT(Error("models: [{path: a}, {path: b/a}]\n"), HasSubstr("the name 'a'"));
  EXPECT_THAT(Error("models: [{name: a}]\n"), HasSubstr("a model has no path"));
  EXPECT_THAT(Error("log_level: info\n"), HasSubstr("lists no models"));
  EXPECT_THAT(Error(models + "server: {listen: '127.0.0.1:99999'}\n"),
              HasSubstr(":2: server.listen: '127.0.0.1:99999' is not HOST:PORT"));
  EXPECT_THAT(Error(models + "server: {listen: nonsense}\n"), HasSubstr("'nonsense' is not HOST"));
  EXPECT_THAT(Error(models + "server: {listen: [1]}\n"), HasSubstr("is not HOST:PORT"));
  EXPECT_THAT(Error("models: [\n"), HasSubstr(".yaml:"));
  EXPECT_THAT(Error(models + "limits: {default_max_tokens: 9, max_tokens: 8}\n"),
              HasSubstr("default_max_tokens is 9; limits.max_tokens is 8"));
}

TEST_F(ConfigTest, AnEmptyFileOrSectionIsSaidToBeEmpty) {
  EXPECT_EQ(Error(""), path_ + ": the file is empty");
  EXPECT_EQ(Error("# only a comment\n"), path_ + ": the file is empty");
  EXPECT_EQ(Error("just words\n"), path_ + ":1: the file must be keys with values");
  EXPECT_EQ(Error("models: [{path: a}]\nserver:\n"), path_ + ": server is empty");
}

TEST_F(ConfigTest, ADirectoryIsNoConfigFile) {
  EXPECT_EQ(LoadConfig(::testing::TempDir()).status(),
            absl::InvalidArgumentError(::testing::TempDir() + ": is a directory, not a file"));
}

TEST_F(ConfigTest, ReadsTheCpuLevel) {
  const auto config = Load("models: [{path: a}]\ndevice: {cpu_level: avx2}\n");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->backend.cpu_level, "avx2");
}

TEST_F(ConfigTest, ReadsWhereMediaAreMade) {
  for (const auto& [name, place] :
       {std::pair("auto", MediaPlace::kAuto), std::pair("host", MediaPlace::kHost),
        std::pair("device", MediaPlace::kDevice)}) {
    const auto config = Load(std::string("models: [{path: a}]\ndevice: {media: ") + name + "}\n");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->engine.media, place);
  }
}

TEST_F(ConfigTest, SaysWhichFileIsMissing) {
  EXPECT_EQ(LoadConfig("no/such.yaml").status(),
            absl::NotFoundError("no/such.yaml: there is no such file"));
}

}  // namespace
}  // namespace sensorium
