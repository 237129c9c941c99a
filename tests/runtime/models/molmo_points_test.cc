#include "runtime/models/molmo_points.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {

// Exact: the pixel values of these tests are computed the same way on both sides.
bool operator==(const MolmoPoint& a, const MolmoPoint& b) {
  return a.x == b.x && a.y == b.y && a.label == b.label && a.ordinal == b.ordinal;
}
void PrintTo(const MolmoPoint& p, std::ostream* out) {
  *out << "#" << p.ordinal << " (" << p.x << ", " << p.y << ") '" << p.label << "'";
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// 1000 x 500 makes 10 and 5 pixels of every percent.
constexpr int32_t kWidth = 1000;
constexpr int32_t kHeight = 500;

void Append(std::vector<MolmoPoint>& to, std::vector<MolmoPoint> from) {
  to.insert(to.end(), from.begin(), from.end());
}

std::vector<MolmoPoint> Parse(std::string_view text) {
  MolmoPointParser parser(kWidth, kHeight);
  std::vector<MolmoPoint> points = parser.Push(text);
  Append(points, parser.Finish());
  return points;
}

struct Sample {
  std::string text;
  std::vector<MolmoPoint> points;
};

std::vector<Sample> Samples() {
  return {
      {R"( <point x="12.5" y="50.0" alt="a dog">a dog</point>)", {{125, 250, "a dog", 1}}},
      {R"(Counting the <points x1="10.0" y1="20.0" x2="30.5" y2="41.2" alt="cups">cups</points>)"
       " shows a total of 2.",
       {{100, 100, "cups", 1}, {305, 206, "cups", 2}}},
      // No alt, an alt before the numbers, an empty alt, no closing tag, a cut-off tag.
      {R"(<point x="10" y="20">here</point>)", {{100, 100, "", 1}}},
      {R"(<points alt="cat" x1="10" y1="20" x2="30" y2="40">)",
       {{100, 100, "cat", 1}, {300, 200, "cat", 2}}},
      {R"(<point x="10" y="20" alt="">x</point>)", {{100, 100, "", 1}}},
      {R"(<point x="10" y="20" alt="dog)", {{100, 100, "", 1}}},
      {R"(<point x="10" y="20")", {{100, 100, "", 1}}},
      {R"(<point x="10" y="20)", {}},
      // A tag that restarts keeps its first point; the label belongs to the second.
      {R"(<point x="10" y="20" <point x="30" y="40" alt="dog">)",
       {{100, 100, "", 1}, {300, 200, "dog", 2}}},
      // Blanks inside the quotes, white space between the attributes, integers, zero and 100.
      {"<point x=\" 10.0\" \n\t y=\"  20.0\" alt=\"dog\">", {{100, 100, "dog", 1}}},
      {R"(<point x="0" y="100" alt="corner">)", {{0, 500, "corner", 1}}},
      // The x attribute twice per point.
      {R"(<points x1="10.0" x1="10.0" y1="20.0" x2="30.0" x2="30.0" y2="40.0" alt="dogs">)",
       {{100, 100, "dogs", 1}, {300, 200, "dogs", 2}}},
      {R"(<points x1="10.0" y1="20.0" y1="20.0" alt="dogs">)", {{100, 100, "dogs", 1}}},
      // Above 100: that pair only.
      {R"(<points x1="100.1" y1="20" x2="30" y2="40" x3="1" y3="101" alt="dogs">)",
       {{300, 200, "dogs", 1}}},
      // Points as anchors in prose; the label is not carried on to the next.
      {R"(The <point x="1" y="2" alt="lid">lid</point> is off, see <point x="3" y="4">there</point>)",
       {{10, 10, "lid", 1}, {30, 20, "", 2}}},
      {R"(<pointer x="10" y="20" alt="a"> and x="30" y="40" alt="b")",
       {{100, 100, "", 1}, {300, 200, "", 2}}},
      // Text in a label is text.
      {R"(<point x="10" y="20" alt="at (30.0, 40.0) <b> p=123, 456 日本">)",
       {{100, 100, "at (30.0, 40.0) <b> p=123, 456 日本", 1}}},
      // Actions and bare pairs: exactly one decimal.
      {"Action: Click(12.5, 50.0)", {{125, 250, "", 1}}},
      {"Click(12.5,50.0) Long Press(1.0, 2.0)", {{125, 250, "", 1}, {10, 10, "", 2}}},
      {"at (12.5, 50.0), (1.0 2.0), (3.04.0) and (5.0,6.0)",
       {{125, 250, "", 1}, {10, 10, "", 2}, {30, 20, "", 3}, {50, 30, "", 4}}},
      {"(12, 50) (1.25, 2.0) (1.0, 2.05) (-1.0, 2.0) (1.0,  2.0) (1.0; 2.0) f(1.0, 2.0, 3.0)", {}},
      {"Click(100.1, 2.0) Click(99.9, 2.0)", {{999, 10, "", 1}}},
      {"((1.0, 2.0))", {{10, 10, "", 1}}},
      // The old form: tenths of a percent.
      {"p=123, 456", {{123, 228, "", 1}}},
      {"1 = 100 , 200 2=300,400", {{100, 100, "", 1}, {300, 200, "", 2}}},
      {"p=12, 456 q=123, 456 p=1234, 567; =123, 456", {}},
      // What is not a point.
      {"There are none.", {}},
      {"This isn't in the image.", {}},
      {R"(x="1.5.2" y="3" x="-1" y="2" x="1"y="2" x="1" z="2" x='1' y='2' x="" y="2" x="1." y="2")",
       {}},
      {"", {}},
  };
}

TEST(MolmoPointParserTest, FindsEveryFormTheEvaluatorAccepts) {
  for (const Sample& sample : Samples())
    EXPECT_EQ(Parse(sample.text), sample.points) << sample.text;
}

TEST(MolmoPointParserTest, FindsTheSamePointsHoweverTheTextIsCut) {
  for (const Sample& sample : Samples()) {
    const std::string_view text = sample.text;
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      MolmoPointParser parser(kWidth, kHeight);
      std::vector<MolmoPoint> points = parser.Push(text.substr(0, cut));
      Append(points, parser.Push(text.substr(cut)));
      Append(points, parser.Finish());
      ASSERT_EQ(points, sample.points) << text << " cut at " << cut;
    }
    MolmoPointParser parser(kWidth, kHeight);
    std::vector<MolmoPoint> points;
    for (char c : text) Append(points, parser.Push({&c, 1}));
    Append(points, parser.Finish());
    EXPECT_EQ(points, sample.points) << text << " byte by byte";
  }
}

// The prefixes after which the first points come out, byte by byte.
std::string TextAtFirstPoint(std::string_view text) {
  MolmoPointParser parser(kWidth, kHeight);
  for (size_t i = 0; i < text.size(); ++i) {
    if (!parser.Push(text.substr(i, 1)).empty()) return std::string(text.substr(0, i + 1));
  }
  return "";
}

TEST(MolmoPointParserTest, HandsAPointOverAsSoonAsItsLabelIsKnown) {
  EXPECT_EQ(TextAtFirstPoint(R"(<points x1="1" y1="2" x2="3" y2="4" alt="dog">dog</points>)"),
            R"(<points x1="1" y1="2" x2="3" y2="4" alt="dog")");
  EXPECT_EQ(TextAtFirstPoint(R"(<point x="1" y="2">dog</point>)"), R"(<point x="1" y="2">)");
  EXPECT_EQ(TextAtFirstPoint(R"(<point alt="dog" x="1" y="2">)"),
            R"(<point alt="dog" x="1" y="2")");
  EXPECT_EQ(TextAtFirstPoint(R"(see x="1" y="2" alt="dog")"), R"(see x="1" y="2")");
  EXPECT_EQ(TextAtFirstPoint("Click(1.0, 2.0) now"), "Click(1.0, 2.0)");
  EXPECT_EQ(TextAtFirstPoint("p=123, 4567"), "p=123, 456");
}

TEST(MolmoPointParserTest, ScalesToTheOriginalImage) {
  MolmoPointParser parser(/*image_width=*/641, /*image_height=*/33);
  const std::vector<MolmoPoint> points = parser.Push(R"(<point x="33.3" y="66.7" alt="a">)");
  ASSERT_THAT(points, SizeIs(1));
  EXPECT_FLOAT_EQ(points[0].x, 641 * 0.333f);
  EXPECT_FLOAT_EQ(points[0].y, 33 * 0.667f);
}

TEST(MolmoPointParserTest, CountsOrdinalsOnOverTheWholeAnswer) {
  MolmoPointParser parser(kWidth, kHeight);
  EXPECT_THAT(parser.Push(R"(<point x="1" y="2" alt="a">a</point>)"),
              ElementsAre(MolmoPoint{10, 10, "a", 1}));
  EXPECT_THAT(parser.Push(R"(<point x="200" y="2" alt="a">)"), IsEmpty());
  EXPECT_THAT(parser.Push("Click(3.0, 4.0)"), ElementsAre(MolmoPoint{30, 20, "", 2}));
  EXPECT_THAT(parser.Finish(), IsEmpty());
}

// "shows a total of N." says how many points there were; every other answer has the one of its tag,
// or none.
TEST(MolmoPointParserTest, FindsAsManyPointsAsTheBundledModelsAnswersSay) {
  std::ifstream file(SENSORIUM_MODELS "/molmo-mini/answers.json");
  const nlohmann::json answers = nlohmann::json::parse(file);
  int with_points = 0;
  for (const auto& entry : answers) {
    const std::string answer = entry.at("answer");
    const std::string kTotal = "shows a total of ";
    size_t expected = answer.find("<point ") != answer.npos ? 1 : 0;
    if (const size_t at = answer.find(kTotal); at != answer.npos) {
      expected = std::stoul(answer.substr(at + kTotal.size()));
    }
    EXPECT_THAT(Parse(answer), SizeIs(expected)) << answer;
    with_points += expected > 0;
  }
  EXPECT_GT(with_points, 0);
}

TEST(MolmoPointParserTest, SeesNoFormLongerThanItsLimit) {
  const auto pair = [](size_t size) {  // x="1"   ...   y="2"
    return R"(x="1")" + std::string(size - 10, ' ') + R"(y="2")";
  };
  for (const size_t lead : {0, 1, 100, 255, 256, 257, 511, 512, 513, 1000}) {
    const std::string before(lead, 'x');
    EXPECT_THAT(Parse(before + pair(MolmoPointParser::kMaxForm)), SizeIs(1)) << lead;
    EXPECT_THAT(Parse(before + pair(MolmoPointParser::kMaxForm + 1)), IsEmpty()) << lead;
  }
}

TEST(MolmoPointParserTest, GivesUpATagThatHoldsBackTooMuch) {
  // No more points wait for a label than the limit.
  MolmoPointParser parser(kWidth, kHeight);
  EXPECT_THAT(parser.Push("<points "), IsEmpty());
  for (size_t i = 1; i < MolmoPointParser::kMaxPending; ++i) {
    ASSERT_THAT(parser.Push(R"(x="1" y="2" )"), IsEmpty());
  }
  EXPECT_THAT(parser.Push(R"(x="1" y="2" )"), SizeIs(MolmoPointParser::kMaxPending));
  EXPECT_THAT(parser.Push(R"(x="1" y="2" alt="dog")"),
              ElementsAre(MolmoPoint{10, 10, "dog", MolmoPointParser::kMaxPending + 1}));

  // A label that never ends stops being one.
  const std::string head = R"(<point x="1" y="2" alt=")";
  const std::string longest(MolmoPointParser::kMaxLabel, 'a');
  EXPECT_THAT(Parse(head + longest + '"'), ElementsAre(MolmoPoint{10, 10, longest, 1}));
  MolmoPointParser endless(kWidth, kHeight);
  EXPECT_THAT(endless.Push(head + longest), IsEmpty());
  EXPECT_THAT(endless.Push("a"), ElementsAre(MolmoPoint{10, 10, "", 1}));
  EXPECT_THAT(endless.Push("Click(3.0, 4.0)"), ElementsAre(MolmoPoint{30, 20, "", 2}));
}

TEST(MolmoPointParserTest, SurvivesGarbageAndNeverLeavesTheImage) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const std::vector<std::string> pieces = {"<point",
                                           "<points",
                                           " ",
                                           "x",
                                           "y",
                                           "1",
                                           "12.5",
                                           "99.9",
                                           "=",
                                           "\"",
                                           "alt=\"",
                                           ">",
                                           "</point>",
                                           "Click(",
                                           "(",
                                           ")",
                                           ", ",
                                           ".",
                                           "p=",
                                           "123",
                                           "\n",
                                           "<",
                                           "日",
                                           "\xff",
                                           "x=\"10\" y=\"20\"",
                                           "(1.0, 2.0)",
                                           "p=100, 200",
                                           std::string(1, '\0')};
  size_t found = 0;
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int i = 0; i < 300; ++i) text += pieces[random() % pieces.size()];
    MolmoPointParser parser(kWidth, kHeight);
    std::vector<MolmoPoint> points;
    for (size_t at = 0; at < text.size();) {
      const size_t size = std::min<size_t>(1 + random() % 50, text.size() - at);
      Append(points, parser.Push(std::string_view(text).substr(at, size)));
      at += size;
    }
    Append(points, parser.Finish());
    ASSERT_EQ(points, Parse(text)) << "round " << round;
    for (size_t i = 0; i < points.size(); ++i) {
      EXPECT_EQ(points[i].ordinal, static_cast<int32_t>(i + 1));
      EXPECT_TRUE(points[i].x >= 0 && points[i].x <= kWidth) << points[i].x;
      EXPECT_TRUE(points[i].y >= 0 && points[i].y <= kHeight) << points[i].y;
    }
    found += points.size();
  }
  EXPECT_GT(found, 300u);
}

}  // namespace
}  // namespace sensorium
