#include "server/subtitles.h"

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(SubtitlesTest, ATimedLineShowsHoursOnlyWhenThereAreSome) {
  EXPECT_EQ(TimedLine(0, 4120, " Good morning."), "[00:00.000 --> 00:04.120] Good morning.");
  EXPECT_EQ(TimedLine(3599999, 3600001, "late"), "[59:59.999 --> 01:00:00.001] late");
  EXPECT_EQ(TimedLine(360000007, 360000008, "x"), "[100:00:00.007 --> 100:00:00.008] x");
}

TEST(SubtitlesTest, ATimedLineStaysOneLine) {
  EXPECT_EQ(TimedLine(0, 1000, "a\nb\r\n\n  c "), "[00:00.000 --> 00:01.000] a b c");
}

TEST(SubtitlesTest, SubRipWritesACommaAndWebVttAPoint) {
  EXPECT_EQ(SrtCue(1, 1500, 3723004, " Hello."), "1\n00:00:01,500 --> 01:02:03,004\nHello.\n\n");
  EXPECT_EQ(VttCue(1500, 3723004, " Hello."), "00:00:01.500 --> 01:02:03.004\nHello.\n\n");
  EXPECT_EQ(VttHeader(), "WEBVTT\n\n");
}

TEST(SubtitlesTest, AnArrowInTheTextIsNoTimeLine) {
  EXPECT_EQ(SrtCue(7, 0, 1000, "a --> b"), "7\n00:00:00,000 --> 00:00:01,000\na -> b\n\n");
  EXPECT_EQ(VttCue(0, 1000, "a --> b"), "00:00:00.000 --> 00:00:01.000\na --&gt; b\n\n");
}

TEST(SubtitlesTest, WebVttEscapesWhatWouldBeMarkup) {
  EXPECT_EQ(VttCue(0, 1, "<b> & &lt;"),
            "00:00:00.000 --> 00:00:00.001\n&lt;b&gt; &amp; &amp;lt;\n\n");
}

TEST(SubtitlesTest, ABlankLineOfTheTextDoesNotEndTheCue) {
  EXPECT_EQ(SrtCue(1, 0, 1, "one\n\n \r\ntwo\n"), "1\n00:00:00,000 --> 00:00:00,001\none\ntwo\n\n");
}

TEST(SubtitlesTest, ACueWithoutTextIsLeftOut) {
  EXPECT_EQ(SrtCue(1, 0, 1000, " \n\t"), "");
  EXPECT_EQ(VttCue(0, 1000, ""), "");
}

TEST(SubtitlesTest, ACueEndsAfterItBegins) {
  EXPECT_EQ(VttCue(2000, 2000, "x"), "00:00:02.000 --> 00:00:02.001\nx\n\n");
  EXPECT_EQ(SrtCue(1, 2000, 1000, "x"), "1\n00:00:02,000 --> 00:00:02,001\nx\n\n");
  EXPECT_EQ(VttCue(-5, -1, "x"), "00:00:00.000 --> 00:00:00.001\nx\n\n");
}

TEST(SubtitlesTest, TrimKeepsWhatIsBetweenTheEnds) {
  EXPECT_EQ(Trim("  a  b\n"), "a  b");
  EXPECT_EQ(Trim(" \n "), "");
  EXPECT_EQ(Trim(""), "");
  EXPECT_EQ(Trim("\u00a0x"), "\u00a0x");  // beyond ASCII: the model meant it
}

}  // namespace
}  // namespace sensorium
