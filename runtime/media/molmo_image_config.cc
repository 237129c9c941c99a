// Reads preprocessor_config.json. Source: MolmoImageProcessor.__init__, whose field names these
// are.
#include <string>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/media/molmo_image.h"

namespace sensorium {

namespace {

constexpr int32_t kMaxCropSize = 4096;  // pixels; published: 336
constexpr int32_t kMaxCrops = 1024;     // published: 12 and 36

class Reader {
 public:
  Reader(const nlohmann::json& json, std::string_view origin) : json_(json), origin_(origin) {}

  absl::Status Error(std::string_view field, const std::string& what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(origin_), ": ", std::string(field), " ", what));
  }
  // A whole number in [low, high]; an absent field leaves *out as it is.
  absl::Status Int(const char* field, int32_t low, int32_t high, int32_t* out) const {
    const auto it = json_.find(field);
    return it == json_.end() ? absl::OkStatus() : IntOf(field, *it, low, high, out);
  }
  absl::Status Pair(const char* field, int32_t low, int32_t high, int32_t* a, int32_t* b) const {
    const auto it = json_.find(field);
    if (it == json_.end()) return absl::OkStatus();
    if (!it->is_array() || it->size() != 2) return Error(field, "must be a list of 2 numbers");
    RETURN_IF_ERROR(IntOf(field, (*it)[0], low, high, a));
    return IntOf(field, (*it)[1], low, high, b);
  }
  absl::Status Rgb(const char* field, bool positive, std::array<float, 3>* out) const {
    const auto it = json_.find(field);
    if (it == json_.end()) return absl::OkStatus();
    if (!it->is_array() || it->size() != 3) return Error(field, "must be a list of 3 numbers");
    for (size_t c = 0; c < 3; ++c) {
      if (!(*it)[c].is_number()) return Error(field, "must be a list of 3 numbers");
      (*out)[c] = (*it)[c].get<float>();
      if (!((*out)[c] > (positive ? 0.0f : -1e6f) && (*out)[c] < 1e6f)) {
        return Error(field, absl::StrCat("has ", (*out)[c], ", which is out of range"));
      }
    }
    return absl::OkStatus();
  }
  // True unless the file says otherwise; false is a processor that we are not.
  absl::Status MustBeTrue(const char* field) const {
    const auto it = json_.find(field);
    if (it == json_.end() || (it->is_boolean() && it->get<bool>())) return absl::OkStatus();
    return Error(field, absl::StrCat("is ", it->is_boolean() ? "false" : "no boolean",
                                     "; only true is supported"));
  }

 private:
  absl::Status IntOf(const char* field, const nlohmann::json& value, int32_t low, int32_t high,
                     int32_t* out) const {
    if (!value.is_number_integer()) return Error(field, "must be a whole number");
    // As double: whole numbers beyond int64 compare and print right too.
    const double v = value.get<double>();
    if (v < low || v > high) {
      return Error(field, absl::StrCat("is ", value.dump(), "; allowed are ", low, " to ", high));
    }
    *out = static_cast<int32_t>(v);
    return absl::OkStatus();
  }

  const nlohmann::json& json_;
  const std::string_view origin_;
};

}  // namespace

absl::StatusOr<MolmoImageConfig> MolmoImageConfig::FromJson(std::string_view text,
                                                            std::string_view origin) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(origin), ": is not a JSON object"));
  }
  const Reader reader(json, origin);
  MolmoImageConfig c;
  int32_t width = c.crop_size;
  RETURN_IF_ERROR(reader.Pair("base_image_input_size", 1, kMaxCropSize, &c.crop_size, &width));
  if (width != c.crop_size) {
    return reader.Error("base_image_input_size",
                        absl::StrCat("is ", c.crop_size, " by ", width, "; crops are square"));
  }
  RETURN_IF_ERROR(reader.Int("image_patch_size", 1, kMaxCropSize, &c.patch_size));
  RETURN_IF_ERROR(reader.Int("image_token_length_h", 1, kMaxCropSize, &c.tokens_per_side));
  int32_t columns = c.tokens_per_side;
  RETURN_IF_ERROR(reader.Int("image_token_length_w", 1, kMaxCropSize, &columns));
  if (columns != c.tokens_per_side) {
    return reader.Error("image_token_length_w",
                        absl::StrCat("is ", columns, "; image_token_length_h is ",
                                     c.tokens_per_side, ", and crops are square"));
  }
  RETURN_IF_ERROR(reader.Int("max_crops", 1, kMaxCrops, &c.max_crops));
  RETURN_IF_ERROR(
      reader.Pair("overlap_margins", 0, kMaxCropSize, &c.overlap_left, &c.overlap_right));
  RETURN_IF_ERROR(reader.Rgb("image_mean", /*positive=*/false, &c.mean));
  RETURN_IF_ERROR(reader.Rgb("image_std", /*positive=*/true, &c.std));
  RETURN_IF_ERROR(reader.MustBeTrue("do_normalize"));
  RETURN_IF_ERROR(reader.MustBeTrue("image_padding_mask"));

  if (c.crop_size % c.patch_size) {
    return reader.Error(
        "image_patch_size",
        absl::StrCat("is ", c.patch_size, ", which does not divide the crop's ", c.crop_size));
  }
  if (c.patches_per_side() % c.tokens_per_side) {
    return reader.Error("image_token_length_h",
                        absl::StrCat("is ", c.tokens_per_side, ", which does not divide the ",
                                     c.patches_per_side(), " patches of a crop's side"));
  }
  const int32_t pool = c.patches_per_side() / c.tokens_per_side;
  if (c.overlap_left % pool || c.overlap_right % pool ||
      c.overlap_left + c.overlap_right >= c.patches_per_side()) {
    return reader.Error(
        "overlap_margins",
        absl::StrCat("are ", c.overlap_left, " and ", c.overlap_right,
                     "; they must be multiples of the pooling's ", pool,
                     " and leave something of a crop's ", c.patches_per_side(), " patches"));
  }
  return c;
}

}  // namespace sensorium
