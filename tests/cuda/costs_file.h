// cuda/COSTS.md, whose sections tests make and check: each is "## Title", an empty line, its text.
#pragma once

#include <string>

namespace sensorium {

// The section's text in the file; "" when it is not there.
std::string CostsSection(const std::string& title);
// Fails the test when the file says something else; with SENSORIUM_UPDATE_COSTS=1 in the
// environment it writes the section anew instead.
void CheckCostsSection(const std::string& title, const std::string& text);

}  // namespace sensorium
