#include "server/address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

constexpr char kUnix[] = "unix:";
constexpr int kMaxPort = 65535;

class Socket {
 public:
  explicit Socket(int family) : fd_(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status CannotListen(const std::string& address, const std::string& why) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why));
}

std::string Why(int error) {
  if (error == EADDRINUSE) return "the port is in use";
  if (error == EADDRNOTAVAIL) return "the address is not this machine's";
  return std::strerror(error);
}

// gRPC deletes a socket file that lies there, in use or not.
absl::Status ProbeUnix(const std::string& address) {
  const std::string path = address.substr(sizeof kUnix - 1);
  sockaddr_un name{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof name.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("the path of '", address, "' has ", path.size(),
                                                   " bytes; the limit is ",
                                                   sizeof name.sun_path - 1));
  }
  std::copy(path.begin(), path.end(), name.sun_path);
  const Socket probe(AF_UNIX);
  if (connect(probe.fd(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0) {
    return CannotListen(address, "another server listens there");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAddress(const std::string& address, int min_port) {
  if (address.starts_with(kUnix) && address.size() > sizeof kUnix - 1) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon);
  const std::string digits = colon == address.npos ? "" : address.substr(colon + 1);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const bool is_host = !host.empty() && (bracketed || host.find_first_of(":[]") == host.npos);
  int port = 0;
  const bool is_port = std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) &&
                       absl::SimpleAtoi(digits, &port) && port >= min_port && port <= kMaxPort;
  if (is_host && is_port) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("'", address,
                                                 "' is not HOST:PORT with a port from ", min_port,
                                                 " to ", kMaxPort, ", nor unix:PATH"));
}

absl::Status ProbeListen(const std::string& address) {
  RETURN_IF_ERROR(CheckAddress(address, 0));
  if (address.starts_with(kUnix)) return ProbeUnix(address);
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error =
          getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found)) {
    return CannotListen(address, gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> all(found, freeaddrinfo);
  // gRPC is content with one address of a name; but then clients of the others meet somebody else.
  bool bound = false;
  int error = EADDRNOTAVAIL;
  for (const addrinfo* at = found; at; at = at->ai_next) {
    const Socket probe(at->ai_family);
    if (probe.fd() < 0) continue;  // a machine without IPv6
    const int on = 1;  // else a server that stopped a minute ago would still be in the way
    setsockopt(probe.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(probe.fd(), at->ai_addr, at->ai_addrlen) == 0) {
      bound = true;
    } else if (error = errno; error == EADDRINUSE) {
      return CannotListen(address, Why(error));
    }
  }
  return bound ? absl::OkStatus() : CannotListen(address, Why(error));
}

}  // namespace sensorium
