#include "server/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, HostsAndPortsAndSocketPathsAreTaken) {
  for (const char* address : {"127.0.0.1:50051", "0.0.0.0:0", "localhost:65535", "[::1]:50051",
                              "[::]:0", "unix:/run/sensorium.sock", "unix:relative"}) {
    EXPECT_TRUE(CheckAddress(address, 0).ok()) << address;
  }
}

TEST(AddressTest, WhatIsNoAddressIsRefusedByName) {
  for (const char* address : {"", "nonsense", ":50051", "host:", "127.0.0.1:99999",
                              "127.0.0.1:65536", "host:-1", "host:+1", "host: 1", "host:1x",
                              "host:4294967297", "::1:50051", "[]:1", "[::1]", "unix:"}) {
    const absl::Status status = CheckAddress(address, 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::string("'") + address + "' is not HOST:PORT with a port from 0"));
  }
  EXPECT_FALSE(CheckAddress("host:0", 1).ok());  // a client needs one
}

class Listener {
 public:
  explicit Listener(const std::string& unix_path = "") {
    sockaddr_in in{};
    sockaddr_un un{};
    in.sin_family = AF_INET;
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    un.sun_family = AF_UNIX;
    std::strncpy(un.sun_path, unix_path.c_str(), sizeof un.sun_path - 1);
    fd_ = socket(unix_path.empty() ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
    const bool bound = unix_path.empty()
                           ? bind(fd_, reinterpret_cast<sockaddr*>(&in), sizeof in) == 0
                           : bind(fd_, reinterpret_cast<sockaddr*>(&un), sizeof un) == 0;
    EXPECT_TRUE(bound && listen(fd_, 1) == 0) << std::strerror(errno);
    socklen_t size = sizeof in;
    if (unix_path.empty()) getsockname(fd_, reinterpret_cast<sockaddr*>(&in), &size);
    port_ = ntohs(in.sin_port);
  }
  ~Listener() { close(fd_); }
  std::string port() const { return std::to_string(port_); }

 private:
  int fd_ = -1, port_ = 0;
};

TEST(AddressTest, APortInUseIsNoticedBeforeAnybodyListens) {
  const Listener listener;
  std::vector<const char*> hosts = {"127.0.0.1:", "0.0.0.0:"};
  addrinfo* found = nullptr;  // a machine without /etc/hosts knows no names
  if (getaddrinfo("localhost", nullptr, nullptr, &found) == 0) {
    freeaddrinfo(found);
    hosts.push_back("localhost:");
  }
  for (const char* host : hosts) {
    const absl::Status status = ProbeListen(host + listener.port());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << host;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the port is in use")) << host;
  }
  EXPECT_TRUE(ProbeListen("127.0.0.1:0").ok());
}

TEST(AddressTest, APortThatWasProbedIsStillFree) {
  std::string port;
  {
    const Listener listener;
    port = listener.port();
  }
  EXPECT_TRUE(ProbeListen("127.0.0.1:" + port).ok());
  EXPECT_TRUE(ProbeListen("127.0.0.1:" + port).ok());
}

TEST(AddressTest, AHostThatIsNotThisMachinesIsSaidToBe) {
  const absl::Status foreign = ProbeListen("192.0.2.1:50051");  // RFC 5737: nobody's
  EXPECT_EQ(foreign.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("the address is not this machine's"));
  EXPECT_EQ(ProbeListen("127.0.0.1:99999").code(), absl::StatusCode::kInvalidArgument);
}

TEST(AddressTest, ASocketFileIsFreeUnlessSomebodyListens) {
  const std::string path = ::testing::TempDir() + "/address_test.sock";
  unlink(path.c_str());
  EXPECT_TRUE(ProbeListen("unix:" + path).ok());
  {
    const Listener listener(path);
    EXPECT_EQ(ProbeListen("unix:" + path).code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_TRUE(ProbeListen("unix:" + path).ok());  // left behind by who ended
  unlink(path.c_str());
}

}  // namespace
}  // namespace sensorium
