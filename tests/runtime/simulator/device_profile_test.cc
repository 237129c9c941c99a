#include "runtime/simulator/device_profile.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/traced_run.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

TEST(DeviceProfileTest, BuiltInProfilesReadBackFromTheirJson) {
  for (const std::string& name : BuiltInProfiles()) {
    const auto profile = LoadDeviceProfile(name);
    ASSERT_TRUE(profile.ok()) << profile.status();
    EXPECT_EQ(profile->name, name);
    EXPECT_EQ(profile->predicted, name.starts_with("predicted-"));
    TemporaryFile file;
    file.Write(DeviceProfileJson(*profile));
    const auto again = LoadDeviceProfile(file.path());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(DeviceProfileJson(*again), DeviceProfileJson(*profile));
    EXPECT_EQ(again->speech.prices, profile->speech.prices);
  }
}

TEST(DeviceProfileTest, WhatIsLeftOutKeepsItsDefaultAndNumbersMayBeWrittenAsPeopleDo) {
  const auto profile = ParseDeviceProfile(
      "{\"kv_blocks\":9e3,\"vision\":{\"prices\":{\"forward_ps\":2.5e9}}}", "x");
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->name, "x");
  EXPECT_EQ(profile->kv_blocks, 9000);
  EXPECT_EQ(profile->vision.prices.forward_ps, 2'500'000'000);
  EXPECT_EQ(profile->vision.prices.decode_row_ps, 0);
  EXPECT_EQ(profile->vision.crop_tokens, VisionLanguageProfile().crop_tokens);
}

TEST(DeviceProfileTest, AWrongProfileIsAnErrorThatNamesTheField) {
  const std::pair<const char*, const char*> kWrong[] = {
      {"", "x: no JSON"},
      {"[]", "x: an object is expected"},
      {"{}", "x: 'kv_blocks' is missing"},
      {"{\"kv_blocks\":0}", "x: 'kv_blocks' is 0; allowed are 1 to"},
      {"{\"kv_blocks\":9,\"colour\":1}", "x: there is no field colour"},
      {"{\"kv_blocks\":9,\"name\":1}", "x: 'name' must be a text"},
      {"{\"kv_blocks\":9,\"vision\":{\"crop_tokens\":-1}}", "x: 'vision.crop_tokens' is -1"},
      {"{\"kv_blocks\":9,\"vision\":{\"prices\":{\"forward_ps\":\"9\"}}}",
       "x: 'vision.prices.forward_ps' must be an integer"},
      {"{\"kv_blocks\":9,\"speech\":{\"prices\":{\"x\":1}}}",
       "x: there is no field speech.prices.x"},
  };
  for (const auto& [text, error] : kWrong) {
    EXPECT_THAT(std::string(ParseDeviceProfile(text, "x").status().message()), HasSubstr(error));
  }
  EXPECT_THAT(std::string(LoadDeviceProfile("nowhere").status().message()),
              HasSubstr("cpu-mini, predicted-a100-molmo-7b-d"));
}

}  // namespace
}  // namespace sensorium
