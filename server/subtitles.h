// A transcript as people and players read it: plain timed lines, SubRip (.srt) and WebVTT (.vtt).
// Pure functions. Times are milliseconds from the recording's start; text is UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sensorium {

// "[00:01.500 --> 00:04.120] text" without a line break; hours only where there are some.
std::string TimedLine(int64_t start_ms, int64_t end_ms, std::string_view text);

// One numbered SubRip cue with the blank line that ends it; numbers begin at 1. "" when the text is
// blank: a cue without text is damage to some players.
// Format: https://www.matroska.org/technical/subtitles.html (SRT has no standard of its own).
std::string SrtCue(int number, int64_t start_ms, int64_t end_ms, std::string_view text);

// Source: https://www.w3.org/TR/webvtt1, section 4: the header comes first, then the cues.
std::string VttHeader();
std::string VttCue(int64_t start_ms, int64_t end_ms, std::string_view text);

// Without white space (of ASCII) at both ends.
std::string_view Trim(std::string_view text);

}  // namespace sensorium
