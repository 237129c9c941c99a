// A TCP proxy to a local port that can stop passing anything on, with its connections open: what a
// client looks like from a server when its machine lost power or its network.
#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "gtest/gtest.h"

namespace sensorium {

// For one connection.
class FreezableProxy {
 public:
  explicit FreezableProxy(int server_port) : server_port_(server_port) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in name = Loopback(0);
    socklen_t size = sizeof name;
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&name), size), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size);
    port_ = ntohs(name.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~FreezableProxy() {
    stopping_ = true;
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }
  void Freeze() { frozen_ = true; }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(static_cast<uint16_t>(port));
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return name;
  }
  void Run() {
    pollfd come{.fd = listener_, .events = POLLIN, .revents = 0};
    while (poll(&come, 1, 10) == 0) {
      if (stopping_) return;
    }
    const int client = accept(listener_, nullptr, nullptr);
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in name = Loopback(server_port_);
    EXPECT_EQ(connect(server, reinterpret_cast<const sockaddr*>(&name), sizeof name), 0);
    bool open = true;
    while (!stopping_) {
      pollfd both[] = {{.fd = client, .events = POLLIN, .revents = 0},
                       {.fd = server, .events = POLLIN, .revents = 0}};
      if (frozen_ || !open || poll(both, 2, 10) <= 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      if (both[0].revents) open = Pass(client, server);
      if (open && both[1].revents) open = Pass(server, client);
    }
    close(client);
    close(server);
  }
  static bool Pass(int from, int to) {
    char bytes[4096];
    const ssize_t got = recv(from, bytes, sizeof bytes, 0);
    return got > 0 && send(to, bytes, static_cast<size_t>(got), MSG_NOSIGNAL) == got;
  }

  const int server_port_;
  int listener_ = -1, port_ = 0;
  std::atomic<bool> frozen_{false}, stopping_{false};
  std::thread thread_;
};

}  // namespace sensorium
