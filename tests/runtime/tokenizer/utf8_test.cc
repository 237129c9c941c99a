#include "runtime/tokenizer/utf8.h"

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(Utf8Test, ReplacesEachMaximalSubpartAsTheUnicodeStandardSays) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(ReplaceInvalidUtf8("ab\xC3\xA9z"), "ab\xC3\xA9z");
  // Unicode 15, table 3-8 to 3-11.
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8Test, TellsACutSequenceFromABadOne) {
  EXPECT_EQ(Utf8SequenceLength("\xE2\x82\xAC"), 3);
  EXPECT_EQ(Utf8SequenceLength("\xE2\x82"), -1);
  EXPECT_EQ(Utf8SequenceLength("\xE2\x41"), 0);
  EXPECT_EQ(Utf8SequenceLength("\x80"), 0);
}

TEST(Utf8Test, EveryScalarValueSurvivesEncodingAndDecoding) {
  for (char32_t c = 0; c < 0x110000; c += 37) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string s;
    AppendUtf8(s, c);
    ASSERT_EQ(Utf8SequenceLength(s), static_cast<int>(s.size())) << uint32_t{c};
    ASSERT_EQ(uint32_t{DecodeUtf8(s)}, uint32_t{c});
  }
}

TEST(Utf8Test, StripsWhatPythonCallsSpaceAndNothingElse) {
  EXPECT_EQ(StripSpace(" \t\n a b \r\v\f"), "a b");
  EXPECT_EQ(StripSpace("\u00a0\u3000\u2009x\u2028\u0085"), "x");
  EXPECT_EQ(StripSpace("\x1c\x1fx\x1d"), "x");
  EXPECT_EQ(StripSpace("\u200bx\u200b"), "\u200bx\u200b");  // a zero width space is none
  EXPECT_EQ(StripSpace(" \u3000 "), "");
  EXPECT_EQ(StripSpace(""), "");
  EXPECT_EQ(StripSpace("\x80 \x80"), "\x80 \x80");
  EXPECT_EQ(StripSpace("\u00e9"), "\u00e9");
}

}  // namespace
}  // namespace sensorium
