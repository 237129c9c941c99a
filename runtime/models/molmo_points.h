// The points in a Molmo answer, found while the answer is still being written.
//
// Source of the accepted forms: what AI2's evaluator takes (allenai/molmo, olmo/eval,
// extract_points), with coordinates in percent of the original image's width and height:
//   <point x="12.3" y="45.6" alt="label">label</point>                one point
//   <points x1="10.0" y1="20.0" x2="30.5" y2="41.2" alt="label">...   several
//   Click(12.3, 45.6)  (12.3, 45.6)                                   exactly one decimal
//   p=123, 456  1=123, 456                                            three digits: tenths of a
//   percent
// An x and y pair need not stand in a tag. A pair with a value above 100 is dropped. Unlike the
// evaluator, a Click counts once, and text inside alt="..." is a label, never a point.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sensorium {

struct MolmoPoint {
  float x = 0, y = 0;   // pixels of the original image, 0..width and 0..height inclusive
  std::string label;    // the tag's alt, as written; "" when there is none
  int32_t ordinal = 0;  // from 1, in order of appearance over the whole answer
};

// Fed the answer in pieces, split anywhere; what comes out does not depend on the splits. A point
// is handed over as soon as its label is known: in a tag at alt's closing quote (at the tag's end
// when it has no alt), elsewhere with the form's last character. Not thread-safe.
//
// Memory is bounded whatever the text: a form longer than kMaxForm bytes is not seen, and a tag
// that holds back more than kMaxPending points, or whose alt is longer than kMaxLabel bytes, gives
// its points up with label "".
class MolmoPointParser {
 public:
  static constexpr size_t kMaxForm = 256;
  static constexpr size_t kMaxPending = 1024;
  static constexpr size_t kMaxLabel = 512;

  // Size of the original image in pixels. REQUIRES: both positive.
  MolmoPointParser(int32_t image_width, int32_t image_height);

  // The points that `text`, the answer's next piece, completes.
  std::vector<MolmoPoint> Push(std::string_view text);
  // At the answer's end: the points of a tag that was cut off, with label "". Nothing may follow.
  std::vector<MolmoPoint> Finish();

 private:
  // Where the next character stands.
  enum class Place : uint8_t { kText, kTag, kLabel };

  void Feed(char c);
  void MatchForm(char last);                     // adds the point of a form that ends here
  void Add(double x_percent, double y_percent);  // emits it, or holds it back for its label
  void Flush();                                  // emits what was held back, label_ if it is known
  void CloseTag();                               // flushes; no label from here on

  const int32_t image_width_;
  const int32_t image_height_;

  Place place_ = Place::kText;
  std::string tail_;                 // the text since the last form, at most 2 * kMaxForm bytes
  std::string label_;                // of the open tag; what is there of it in kLabel
  bool label_known_ = true;          // false: an open tag whose alt has not come yet
  std::vector<MolmoPoint> pending_;  // of the open tag, label unknown
  std::vector<MolmoPoint> out_;      // of the Push in progress
  int32_t num_points_ = 0;
};

}  // namespace sensorium
