// A bar on the terminal's last line for what takes seconds: loading a model, a long recording.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace sensorium {

// "label [######......]  42 %", at most `columns` columns wide: the bar shrinks first, then it goes
// away, then the label is cut. `done` beyond [0, total] and a total of 0 are taken for the nearest
// share that makes sense. Pure.
std::string RenderProgress(const std::string& label, double done, double total, int columns);

// Draws only when `out` is a terminal: not a byte goes into a pipe or a file. Not thread-safe.
class ProgressBar {
 public:
  // Shows nothing until `delay` is over, so that what is quick does not flicker.
  explicit ProgressBar(FILE* out = stderr,
                       std::chrono::milliseconds delay = std::chrono::milliseconds(300));
  ~ProgressBar() { Clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Redraws at most ten times a second, and when the label changes.
  void Update(const std::string& label, double done, double total);
  // Takes the bar away, before other text goes to the terminal. The next Update brings it back.
  void Clear();

 private:
  using Clock = std::chrono::steady_clock;
  FILE* const out_;
  const bool terminal_;
  Clock::time_point next_;  // not drawn before
  std::string label_;
  bool shown_ = false;
};

}  // namespace sensorium
