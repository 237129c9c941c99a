#include "server/subtitles.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace sensorium {

namespace {

constexpr std::string_view kBlank = " \t\r\n\v\f";

// HH:MM:SS<separator>mmm
std::string ClockTime(int64_t ms, char separator) {
  ms = std::max<int64_t>(ms, 0);
  return absl::StrFormat("%02d:%02d:%02d%c%03d", ms / 3600000, ms / 60000 % 60, ms / 1000 % 60,
                         separator, ms % 1000);
}

std::string ShortTime(int64_t ms) {
  const std::string time = ClockTime(ms, '.');
  return ms < 3600000 ? time.substr(3) : time;
}

// The text's lines, trimmed, without the blank ones: those would end a cue.
std::vector<std::string> Lines(std::string_view text) {
  std::vector<std::string> lines;
  const absl::string_view all(text.data(), text.size());
  for (const absl::string_view line : absl::StrSplit(all, absl::ByAnyChar("\r\n"))) {
    const std::string_view trimmed = Trim({line.data(), line.size()});
    if (!trimmed.empty()) lines.emplace_back(trimmed);
  }
  return lines;
}

// A cue has to end after it begins; a segment may be empty in time.
int64_t CueEnd(int64_t start_ms, int64_t end_ms) {
  return std::max(end_ms, std::max<int64_t>(start_ms, 0) + 1);
}

std::string Cue(const std::string& head, std::string_view text,
                const std::vector<std::pair<absl::string_view, absl::string_view>>& escapes) {
  const std::vector<std::string> lines = Lines(text);
  if (lines.empty()) return "";
  std::string cue = head;
  for (const std::string& line : lines) cue += absl::StrReplaceAll(line, escapes) + "\n";
  return cue + "\n";
}

}  // namespace

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

std::string TimedLine(int64_t start_ms, int64_t end_ms, std::string_view text) {
  std::string line = absl::StrFormat("[%s --> %s]", ShortTime(start_ms), ShortTime(end_ms));
  for (const std::string& part : Lines(text)) line += " " + part;
  return line;
}

std::string SrtCue(int number, int64_t start_ms, int64_t end_ms, std::string_view text) {
  const std::string head = absl::StrFormat("%d\n%s --> %s\n", number, ClockTime(start_ms, ','),
                                           ClockTime(CueEnd(start_ms, end_ms), ','));
  // SubRip has no escape; an arrow of the text would pass for a time line.
  return Cue(head, text, {{"-->", "->"}});
}

std::string VttHeader() { return "WEBVTT\n\n"; }

std::string VttCue(int64_t start_ms, int64_t end_ms, std::string_view text) {
  const std::string head = absl::StrFormat("%s --> %s\n", ClockTime(start_ms, '.'),
                                           ClockTime(CueEnd(start_ms, end_ms), '.'));
  return Cue(head, text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

}  // namespace sensorium
