// What the tests leave out where everything takes ten times as long or more.
#pragma once

namespace sensorium {

// Under ThreadSanitizer one call of each kind has all its races: what asks for the same bits in a
// hundred ways asks in a few.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kForRaces = true;
#else
inline constexpr bool kForRaces = false;
#endif
// Under any of the sanitizers one round has to do.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = kForRaces;
#endif

}  // namespace sensorium
