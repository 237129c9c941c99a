#include "server/progress_bar.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using std::chrono::milliseconds;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A terminal whose far end the test reads.
class Terminal {
 public:
  Terminal() : main_(posix_openpt(O_RDWR | O_NOCTTY)) {
    if (main_ < 0 || grantpt(main_) != 0 || unlockpt(main_) != 0) return;
    file_ = fopen(ptsname(main_), "w");
  }
  ~Terminal() {
    if (file_) fclose(file_);
    if (main_ >= 0) close(main_);
  }
  FILE* file() const { return file_; }
  std::string Shown() {
    fcntl(main_, F_SETFL, O_NONBLOCK);
    char text[4096];
    const ssize_t size = read(main_, text, sizeof text);
    return size > 0 ? std::string(text, size) : "";
  }

 private:
  const int main_;
  FILE* file_ = nullptr;
};

TEST(ProgressBarTest, FillsFromLeftToRight) {
  EXPECT_EQ(RenderProgress("load", 0, 4, 21), "load [........]   0 %");
  EXPECT_EQ(RenderProgress("load", 1, 4, 21), "load [##......]  25 %");
  EXPECT_EQ(RenderProgress("load", 4, 4, 21), "load [########] 100 %");
}

TEST(ProgressBarTest, NeverIsWiderThanTheTerminal) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 2000; ++i) {
    const int columns = static_cast<int>(random() % 120);
    const std::string label(random() % 80, 'x');
    const double done = static_cast<double>(random() % 100),
                 total = static_cast<double>(random() % 100);
    EXPECT_LE(RenderProgress(label, done, total, columns).size(), static_cast<size_t>(columns));
  }
}

TEST(ProgressBarTest, KeepsThePercentageWhenThereIsNoRoomForABar) {
  EXPECT_EQ(RenderProgress("a long file name", 1, 2, 12), "a long  50 %");
}

TEST(ProgressBarTest, NonsenseIsTakenForTheNearestShare) {
  EXPECT_THAT(RenderProgress("x", 5, 0, 40), EndsWith("  0 %"));
  EXPECT_THAT(RenderProgress("x", -1, 4, 40), EndsWith("  0 %"));
  EXPECT_THAT(RenderProgress("x", 9, 4, 40), EndsWith("100 %"));
  EXPECT_THAT(RenderProgress("x", std::nan(""), 4, 40), EndsWith("  0 %"));
  EXPECT_THAT(RenderProgress("x", 1, 4, -3), "");
}

TEST(ProgressBarTest, WritesNotAByteIntoAFile) {
  FILE* file = tmpfile();
  ASSERT_NE(file, nullptr);
  {
    ProgressBar bar(file, milliseconds(0));
    bar.Update("load", 1, 2);
    bar.Clear();
  }
  EXPECT_EQ(ftell(file), 0);
  fclose(file);
}

TEST(ProgressBarTest, DrawsOnATerminalAndTakesTheBarAway) {
  Terminal terminal;
  ASSERT_NE(terminal.file(), nullptr);
  ProgressBar bar(terminal.file(), milliseconds(0));
  bar.Update("load", 1, 2);
  EXPECT_THAT(terminal.Shown(), StartsWith("\rload [####################...."));
  bar.Update("next", 0, 2);
  EXPECT_THAT(terminal.Shown(), HasSubstr("next ["));
  bar.Clear();
  EXPECT_EQ(terminal.Shown(), "\r\x1b[K");
  bar.Clear();
  EXPECT_EQ(terminal.Shown(), "");
}

TEST(ProgressBarTest, ShowsNothingForWhatIsQuick) {
  Terminal terminal;
  ASSERT_NE(terminal.file(), nullptr);
  {
    ProgressBar bar(terminal.file(), std::chrono::hours(1));
    bar.Update("load", 1, 2);
  }
  EXPECT_EQ(terminal.Shown(), "");
}

}  // namespace
}  // namespace sensorium
