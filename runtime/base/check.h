// CHECK: the mechanism for errors that are ours (a shape, an invariant). Always on, aborts with the
// place and the values. No request can reach one: what a caller can get wrong is an absl::Status.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace sensorium::internal {

// Collects the message streamed after CHECK(...) and aborts when it goes out of scope.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    message_ << file << ":" << line << ": CHECK failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::fprintf(stderr, "%s\n", message_.str().c_str());
    std::fflush(stderr);
    std::abort();
  }
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace sensorium::internal

#define CHECK(condition)                      \
  (condition) ? (void)0                       \
              : ::sensorium::internal::Voidify() & \
                    ::sensorium::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()
#define SENSORIUM_CHECK_OP(a, op, b) CHECK((a)op(b)) << "(" << (a) << " vs " << (b) << ") "
#define CHECK_EQ(a, b) SENSORIUM_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) SENSORIUM_CHECK_OP(a, !=, b)
#define CHECK_LT(a, b) SENSORIUM_CHECK_OP(a, <, b)
#define CHECK_LE(a, b) SENSORIUM_CHECK_OP(a, <=, b)
#define CHECK_GT(a, b) SENSORIUM_CHECK_OP(a, >, b)
#define CHECK_GE(a, b) SENSORIUM_CHECK_OP(a, >=, b)
