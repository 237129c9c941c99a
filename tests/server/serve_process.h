// `sensorium serve` as a process of its own, for tests that see it from outside. SENSORIUM_BINARY
// is the program.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {

class ServeProcess {
 public:
  // `pending` has been sent before the program starts, and waits for it to look. `environment`:
  // NAME=VALUE, beside this process's own.
  explicit ServeProcess(std::vector<std::string> arguments, int pending = 0,
                        std::vector<std::string> environment = {}) {
    static int count = 0;
    log_ = ::testing::TempDir() + "/serve_test_" + std::to_string(getpid()) + "_" +
           std::to_string(++count) + ".log";
    arguments.insert(arguments.begin(), {SENSORIUM_BINARY, "serve"});
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    const int log = open(log_.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    if (pending) {  // blocked and pending signals outlive execve(2)
      sigset_t signals;
      sigemptyset(&signals);
      sigaddset(&signals, pending);
      sigprocmask(SIG_BLOCK, &signals, nullptr);
      raise(pending);
    }
    for (std::string& variable : environment) putenv(variable.data());
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~ServeProcess() {
    if (!ended_) {
      Signal(SIGKILL);
      ExitCode();
    }
    std::filesystem::remove(log_);
  }
  void Signal(int signal) { kill(pid_, signal); }
  // Waits for the end; -1: it did not end by itself.
  int ExitCode() {
    int status = 0;
    for (int i = 0; i < 6000 && !ended_; ++i) {
      ended_ = waitpid(pid_, &status, WNOHANG) == pid_;
      if (!ended_) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return ended_ && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string Log() const {
    std::ostringstream text;
    text << std::ifstream(log_).rdbuf();
    return text.str();
  }
  // Waits until it serves; "" when it does not.
  std::string Port() const {
    for (int i = 0; i < 6000; ++i) {
      const std::string log = Log();
      const size_t at = log.find("(port ");
      if (const size_t end = log.find(')', at); at != log.npos && end != log.npos) {
        return log.substr(at + 6, end - at - 6);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return "";
  }

 private:
  std::string log_;
  pid_t pid_ = -1;
  bool ended_ = false;
};

}  // namespace sensorium
