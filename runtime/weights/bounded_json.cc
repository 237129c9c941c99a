#include "runtime/weights/bounded_json.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/weights/quoted.h"

namespace sensorium {

namespace {

// Hands the parser's events on to the library's DOM builder until a limit is passed.
class BoundedSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  BoundedSax(nlohmann::json& root, const JsonLimits& limits)
      : dom_(root, /*allow_exceptions=*/false), limits_(limits) {}

  bool null() override { return Count() && dom_.null(); }
  bool boolean(bool v) override { return Count() && dom_.boolean(v); }
  bool number_integer(number_integer_t v) override { return Count() && dom_.number_integer(v); }
  bool number_unsigned(number_unsigned_t v) override { return Count() && dom_.number_unsigned(v); }
  bool number_float(number_float_t v, const string_t& text) override {
    return Count() && dom_.number_float(v, text);
  }
  bool string(string_t& v) override { return Count() && dom_.string(v); }
  bool binary(binary_t& v) override { return Count() && dom_.binary(v); }
  bool start_object(std::size_t n) override {
    keys_.emplace_back();
    return Enter() && dom_.start_object(n);
  }
  bool key(string_t& k) override {
    if (!keys_.back().insert(k).second) {
      return Fail(absl::StrCat("the name ", Quoted(k), " appears twice"));
    }
    return dom_.key(k);
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return dom_.end_object();
  }
  bool start_array(std::size_t n) override { return Enter() && dom_.start_array(n); }
  bool end_array() override {
    --depth_;
    return dom_.end_array();
  }
  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("not valid JSON at byte ", at));
  }

  const std::string& error() const { return error_; }

 private:
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }
  bool Count() {
    return ++values_ <= limits_.values ||
           Fail(absl::StrCat("more than ", limits_.values, " values"));
  }
  bool Enter() {
    if (++depth_ > limits_.depth) return Fail(absl::StrCat("nested deeper than ", limits_.depth));
    return Count();
  }

  nlohmann::detail::json_sax_dom_parser<nlohmann::json> dom_;
  const JsonLimits limits_;
  std::string error_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  int depth_ = 0;
  int64_t values_ = 0;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view origin,
                                               const JsonLimits& limits) {
  nlohmann::json root;
  BoundedSax sax(root, limits);
  const bool parsed = nlohmann::json::sax_parse(text.begin(), text.end(), &sax);
  if (parsed && root.is_object()) return root;
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(origin), ": ", sax.error().empty() ? "not a JSON object" : sax.error()));
}

}  // namespace sensorium
