#include "runtime/weights/bounded_json.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/json_fields.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string Refusal(std::string_view text, const JsonLimits& limits = {}) {
  const auto json = ParseJsonObject(text, "config.json", limits);
  EXPECT_FALSE(json.ok());
  EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(json.status().message(), HasSubstr("config.json: "));
  return std::string(json.status().message());
}

TEST(BoundedJsonTest, ParsesWhatTheLibraryParses) {
  const std::string text =
      R"({"a": [1, -2, 3.5, true, false, null, "x\u00e9\n"], "b": {"a": {}}, "c": []})";
  const auto json = ParseJsonObject(text, "config.json");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(*json, nlohmann::json::parse(text));
}

TEST(BoundedJsonTest, RefusesADepthBeyondTheLimit) {
  const auto nested = [](int depth) {  // counting the outer object
    return "{\"a\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  };
  EXPECT_TRUE(ParseJsonObject(nested(64), "config.json").ok());
  EXPECT_THAT(Refusal(nested(65)), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(Refusal(nested(2'000'000)), HasSubstr("nested deeper than 64"));
  std::string objects;
  for (int i = 0; i < 500'000; ++i) objects += "{\"a\":";
  EXPECT_THAT(Refusal(objects), HasSubstr("nested deeper than 64"));
}

TEST(BoundedJsonTest, RefusesMoreValuesThanTheLimit) {
  EXPECT_TRUE(ParseJsonObject(R"({"a":[1,2,3]})", "config.json", {.values = 5}).ok());
  EXPECT_THAT(Refusal(R"({"a":[1,2,3]})", {.values = 4}), HasSubstr("more than 4 values"));
}

TEST(BoundedJsonTest, RefusesANameTwiceInOneObjectOnly) {
  EXPECT_TRUE(ParseJsonObject(R"({"a":{"b":1},"b":{"a":2}})", "config.json").ok());
  EXPECT_THAT(Refusal(R"({"a":1,"b":2,"a":3})"), HasSubstr("the name 'a' appears twice"));
  EXPECT_THAT(Refusal(R"({"b":{"a":1,"\u0061":1}})"), HasSubstr("the name 'a' appears twice"));
}

TEST(BoundedJsonTest, RefusesWhatIsNoJsonObjectAndSaysWhere) {
  EXPECT_THAT(Refusal("{\"a\":1,}"), HasSubstr("not valid JSON at byte 8"));
  EXPECT_THAT(Refusal("{\"a\":1e999}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal("{\"a\":\"\xc3\x28\"}"), HasSubstr("not valid JSON"));
  for (const char* text : {"", "{", "{} {}", "nul", "{'a':1}", "\x01"}) {
    EXPECT_THAT(Refusal(text), HasSubstr("not valid JSON")) << text;
  }
  for (const char* text : {"[]", "1", "null", "\"{}\""}) {
    EXPECT_THAT(Refusal(text), HasSubstr("not a JSON object")) << text;
  }
}

TEST(JsonFieldsTest, NamesFileKeyValueAndBounds) {
  const nlohmann::json config = {{"layers", 99}, {"eps", "x"}, {"rope", {{"a", 1}}}};
  EXPECT_THAT(RequiredInt(config, "layers", "config.json", 1, 64).status().message(),
              AllOf(HasSubstr("config.json: layers is 99"), HasSubstr("from 1 to 64")));
  EXPECT_THAT(RequiredInt(config, "heads", "config.json", 1, 64).status().message(),
              HasSubstr("config.json: heads is missing"));
  EXPECT_THAT(OptionalFloat(config, "eps", "config.json", 1e-5).status().message(),
              HasSubstr("eps is \"x\", expected a number"));
  EXPECT_THAT(OptionalBool(config, "rope", "config.json", true).status().message(),
              HasSubstr("rope is an object of 1, expected true or false"));
}

TEST(JsonFieldsTest, TakesTheFallbackForAbsentAndNullOnly) {
  const nlohmann::json config = {{"n", nullptr}, {"m", 0}, {"big", 18446744073709551615u}};
  EXPECT_EQ(*OptionalInt(config, "n", "c", 7, 0, 9), 7);
  EXPECT_EQ(*OptionalInt(config, "absent", "c", 7, 0, 9), 7);
  EXPECT_EQ(*OptionalInt(config, "m", "c", 7, 0, 9), 0);
  EXPECT_FALSE(OptionalInt(config, "big", "c", 7, INT64_MIN, INT64_MAX).ok());
  EXPECT_FALSE(OptionalString(config, "m", "c", "x").ok());
}

}  // namespace
}  // namespace sensorium
