#include "server/progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sensorium {

namespace {

constexpr int kWidestBar = 40;
constexpr int kNarrowestBar = 8;
constexpr std::chrono::milliseconds kRedraw(100);

int ColumnsOf(FILE* terminal) {
  winsize size{};
  if (ioctl(fileno(terminal), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

std::string RenderProgress(const std::string& label, double done, double total, int columns) {
  // Written so that NaN is 0 too.
  const double share = total > 0 && done > 0 ? std::min(done / total, 1.0) : 0.0;
  const std::string percent = absl::StrFormat("%3d %%", static_cast<int>(share * 100));
  const int width = std::max(columns, 0);
  // " [" + bar + "] " stands between the label and the percentage.
  const int room = width - static_cast<int>(label.size() + percent.size()) - 4;
  if (room >= kNarrowestBar) {
    const int bar = std::min(room, kWidestBar);
    const int full = static_cast<int>(share * bar);
    return absl::StrCat(label, " [", std::string(full, '#'), std::string(bar - full, '.'), "] ",
                        percent);
  }
  const size_t left = std::max(width - static_cast<int>(percent.size()) - 1, 0);
  return absl::StrCat(label.substr(0, left), " ", percent).substr(0, width);
}

ProgressBar::ProgressBar(FILE* out, std::chrono::milliseconds delay)
    : out_(out), terminal_(isatty(fileno(out)) == 1), next_(Clock::now() + delay) {}

void ProgressBar::Update(const std::string& label, double done, double total) {
  if (!terminal_) return;
  const Clock::time_point now = Clock::now();
  if (now < next_ && !(shown_ && label != label_)) return;
  next_ = now + kRedraw;
  label_ = label;
  shown_ = true;
  // One column less than there are: a full line would wrap. ESC [K clears the rest of the line.
  const std::string bar = RenderProgress(label, done, total, ColumnsOf(out_) - 1);
  std::fprintf(out_, "\r%s\x1b[K", bar.c_str());
  std::fflush(out_);
}

void ProgressBar::Clear() {
  if (!shown_) return;
  shown_ = false;
  std::fputs("\r\x1b[K", out_);
  std::fflush(out_);
}

}  // namespace sensorium
