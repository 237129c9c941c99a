// cuda/COSTS.md, whose sections tests make and check: each is "## Title", an empty line, its text.
#pragma once

#include <string>

namespace sensorium {

// The section's text in the file; "" when it is not there.
std::string CostsSection(const std::string& title);
// Fails the test when the file says something else; with SENSORIUM_UPDATE_COSTS=1 in the
// environment it writes the section anew instead.
void CheckCostsSection(const std::string& title, const std::string& text);

// The section that the compiler makes.
inline constexpr char kCompilerSection[] = "Registers, shared memory, occupancy";
// The one that cuobjdump makes of the compiler's objects.
inline constexpr char kMachineCodeSection[] = "Machine code";
// What names the sources and flags which the compiler makes of what these sections say: the first
// digits of a SHA-256 over their CodeOf.
std::string KernelSources();
// A file's text without comments ("//" to a line's end) and layout.
std::string CodeOf(const std::string& text);

}  // namespace sensorium
