#include "runtime/models/molmo_points.h"

#include <charconv>
#include <optional>
#include <utility>

#include "runtime/base/check.h"

namespace sensorium {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Reads a form from left to right; every method consumes what it names or says false.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  bool Literal(std::string_view word) {
    if (!text_.starts_with(word)) return false;
    text_.remove_prefix(word.size());
    return true;
  }
  bool Spaces(size_t at_least = 0) {
    size_t count = 0;
    while (count < text_.size() && IsSpace(text_[count])) ++count;
    text_.remove_prefix(count);
    return count >= at_least;
  }
  bool Digits() {  // any number of them
    while (!text_.empty() && IsDigit(text_[0])) text_.remove_prefix(1);
    return true;
  }
  // Integer part of at least one digit, then exactly `decimals` digits after a point; -1: any
  // number of them, or neither point nor digits.
  bool Decimal(int decimals, double& value) {
    size_t end = CountDigits(0);
    if (end == 0) return false;
    const size_t fraction = end < text_.size() && text_[end] == '.' ? CountDigits(end + 1) : 0;
    if (decimals < 0) {
      if (fraction > 0) end += 1 + fraction;
    } else {
      if (fraction < static_cast<size_t>(decimals)) return false;
      end += 1 + decimals;
    }
    return Take(end, value);
  }
  bool ThreeDigits(double& value) { return CountDigits(0) >= 3 && Take(3, value); }
  bool AtEnd() const { return text_.empty(); }

 private:
  size_t CountDigits(size_t from) const {
    size_t end = from;
    while (end < text_.size() && IsDigit(text_[end])) ++end;
    return end - from;
  }
  bool Take(size_t size, double& value) {
    const auto result = std::from_chars(text_.data(), text_.data() + size, value);
    text_.remove_prefix(size);
    return result.ec == std::errc();
  }

  std::string_view text_;
};

struct Percent {
  double x, y;
};

// Each of these says whether `text` ends in its form; what stands before the form is free. A form
// has its x, ( or = only once, so the last one in the text is the only place where it can be.

// x\d*="\s*N"\s+y\d*="\s*N"
std::optional<Percent> MatchAttributes(std::string_view text) {
  const size_t start = text.rfind('x');
  if (start == text.npos) return std::nullopt;
  Cursor in(text.substr(start + 1));
  Percent p;
  if (in.Digits() && in.Literal("=\"") && in.Spaces() && in.Decimal(-1, p.x) && in.Literal("\"") &&
      in.Spaces(1) && in.Literal("y") && in.Digits() && in.Literal("=\"") && in.Spaces() &&
      in.Decimal(-1, p.y) && in.Literal("\"") && in.AtEnd()) {
    return p;
  }
  return std::nullopt;
}

// \(N.d,? ?N.d\), which is also what Click( and Long Press( end in.
std::optional<Percent> MatchParentheses(std::string_view text) {
  const size_t start = text.rfind('(');
  if (start == text.npos) return std::nullopt;
  Cursor in(text.substr(start + 1));
  Percent p;
  if (!in.Decimal(1, p.x)) return std::nullopt;
  in.Literal(",");
  in.Literal(" ");
  if (in.Decimal(1, p.y) && in.Literal(")") && in.AtEnd()) return p;
  return std::nullopt;
}

// (\d|p)\s*=\s*ddd\s*,\s*ddd, in tenths of a percent.
std::optional<Percent> MatchTenths(std::string_view text) {
  const size_t equals = text.rfind('=');
  if (equals == text.npos) return std::nullopt;
  size_t name_end = equals;
  while (name_end > 0 && IsSpace(text[name_end - 1])) --name_end;
  if (name_end == 0) return std::nullopt;
  if (const char name = text[name_end - 1]; name != 'p' && !IsDigit(name)) return std::nullopt;
  Cursor in(text.substr(equals + 1));
  Percent p;
  if (in.Spaces() && in.ThreeDigits(p.x) && in.Spaces() && in.Literal(",") && in.Spaces() &&
      in.ThreeDigits(p.y) && in.AtEnd()) {
    return Percent{p.x / 10, p.y / 10};
  }
  return std::nullopt;
}

// Whether the text up to an opening quote names the alt attribute.
bool EndsInAlt(std::string_view text) {
  constexpr std::string_view kAlt = "alt=";
  if (!text.ends_with(kAlt)) return false;
  text.remove_suffix(kAlt.size());
  return text.empty() || IsSpace(text.back()) || text.back() == '"';
}

}  // namespace

MolmoPointParser::MolmoPointParser(int32_t image_width, int32_t image_height)
    : image_width_(image_width), image_height_(image_height) {
  CHECK_GT(image_width, 0);
  CHECK_GT(image_height, 0);
}

std::vector<MolmoPoint> MolmoPointParser::Push(std::string_view text) {
  for (char c : text) Feed(c);
  return std::exchange(out_, {});
}

std::vector<MolmoPoint> MolmoPointParser::Finish() {
  CloseTag();
  return std::exchange(out_, {});
}

void MolmoPointParser::Feed(char c) {
  if (place_ == Place::kLabel) {
    if (c == '"') {
      place_ = Place::kTag;
      label_known_ = true;
      Flush();
    } else if (label_.size() == kMaxLabel) {
      CloseTag();
    } else {
      label_.push_back(c);
    }
    return;
  }

  if (c == '<' || (c == '>' && place_ == Place::kTag)) CloseTag();
  if (IsSpace(c) && place_ == Place::kText &&
      (tail_.ends_with("<point") || tail_.ends_with("<points"))) {
    place_ = Place::kTag;
    label_known_ = false;
  }
  if (c == '"' && place_ == Place::kTag && EndsInAlt(tail_)) {
    place_ = Place::kLabel;
    label_known_ = false;  // a second alt names the points after it
    label_.clear();
    tail_.clear();
    return;
  }
  if (tail_.size() == 2 * kMaxForm) tail_.erase(0, kMaxForm);
  tail_.push_back(c);
  MatchForm(c);
}

void MolmoPointParser::MatchForm(char last) {
  std::string_view text = tail_;
  if (text.size() > kMaxForm) text.remove_prefix(text.size() - kMaxForm);
  std::optional<Percent> found;
  if (last == '"') found = MatchAttributes(text);
  if (last == ')') found = MatchParentheses(text);
  if (IsDigit(last)) found = MatchTenths(text);
  if (!found) return;
  tail_.clear();  // forms do not overlap
  if (found->x <= 100 && found->y <= 100) Add(found->x, found->y);
}

void MolmoPointParser::Add(double x_percent, double y_percent) {
  pending_.push_back({.x = static_cast<float>(x_percent / 100 * image_width_),
                      .y = static_cast<float>(y_percent / 100 * image_height_),
                      .label = {},
                      .ordinal = ++num_points_});
  if (label_known_ || pending_.size() == kMaxPending) Flush();
}

void MolmoPointParser::Flush() {
  for (MolmoPoint& point : pending_) {
    if (label_known_) point.label = label_;
    out_.push_back(std::move(point));
  }
  pending_.clear();
}

void MolmoPointParser::CloseTag() {
  place_ = Place::kText;
  label_known_ = true;
  label_.clear();
  Flush();
}

}  // namespace sensorium
