// `sensorium serve` as a process of its own: how it starts, refuses and ends.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/remote_client.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class ServeProcess {
 public:
  // `pending` has been sent before the program starts, and waits for it to look.
  explicit ServeProcess(std::vector<std::string> arguments, int pending = 0) {
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

const std::vector<std::string> kDemo = {"--config", SENSORIUM_SOURCE_DIR "/config/demo.yaml",
                                        "--threads", "1"};

std::vector<std::string> Demo(std::vector<std::string> more) {
  more.insert(more.begin(), kDemo.begin(), kDemo.end());
  return more;
}

TEST(ServeTest, SigtermDrainsTheServerWhichExitsWithZero) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServeProcess server(Demo({"--listen", "127.0.0.1:0"}));
    const std::string port = server.Port();
    ASSERT_NE(port, "") << server.Log();
    EXPECT_TRUE(RemoteClient("127.0.0.1:" + port).ListModels().ok());
    server.Signal(signal);
    EXPECT_EQ(server.ExitCode(), 0) << server.Log();
    EXPECT_THAT(server.Log(), AllOf(HasSubstr("draining"), HasSubstr("stopped")));
  }
}

TEST(ServeTest, ASecondServerOnThePortSaysSoInOneLineBeforeItLoads) {
  ServeProcess first(Demo({"--listen", "127.0.0.1:0"}));
  const std::string port = first.Port();
  ASSERT_NE(port, "") << first.Log();
  ServeProcess second(Demo({"--listen", "127.0.0.1:" + port}));
  EXPECT_EQ(second.ExitCode(), 1);
  EXPECT_EQ(second.Log(),
            "sensorium: cannot listen on 127.0.0.1:" + port + ": the port is in use\n");
}

TEST(ServeTest, ASignalWhileModelsLoadEndsTheLoading) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServeProcess server(Demo({"--listen", "127.0.0.1:0"}), signal);
    EXPECT_EQ(server.ExitCode(), 128 + signal) << server.Log();
    EXPECT_THAT(server.Log(),
                AllOf(HasSubstr("while loading: stopped"), Not(HasSubstr("serving"))));
  }
}

// All that two clients had at once, from a server that learns its prices as it goes.
TEST(ServeTest, ItsTraceNamesEveryRequestAndReplaysDecisionByDecision) {
  const std::string trace =
      ::testing::TempDir() + "/serve_test_" + std::to_string(getpid()) + ".trace";
  std::vector<std::string> ids;
  {
    ServeProcess server(Demo({"--listen", "127.0.0.1:0", "--trace", trace}));
    const std::string port = server.Port();
    ASSERT_NE(port, "") << server.Log();
    std::mutex mu;
    std::vector<std::thread> clients;
    for (int c = 0; c < 2; ++c) {
      clients.emplace_back([&] {
        RemoteClient client("127.0.0.1:" + port);
        v1::GenerateRequest request;
        request.set_model("molmo-mini");
        request.set_max_tokens(12);
        request.set_n(2);
        v1::Message& message = *request.add_messages();
        message.set_role(v1::USER);
        message.add_parts()->set_text("Describe this image.");
        for (int i = 0; i < 4; ++i) {
          EXPECT_TRUE(client
                          .Generate(request,
                                    [&](const v1::GenerateResponse& response) {
                                      if (response.has_started()) {
                                        std::lock_guard lock(mu);
                                        ids.push_back(response.started().request_id());
                                      }
                                      return true;
                                    })
                          .ok());
        }
      });
    }
    for (std::thread& client : clients) client.join();
    server.Signal(SIGTERM);
    ASSERT_EQ(server.ExitCode(), 0) << server.Log();
  }
  std::ostringstream lines;
  lines << std::ifstream(trace).rdbuf();
  ASSERT_EQ(ids.size(), 8u);
  for (const std::string& id : ids) {
    EXPECT_THAT(lines.str(), HasSubstr("\"request\":\"" + id + "\"")) << id;
  }
  FILE* replay =
      popen((std::string(SENSORIUM_BINARY) + " bench replay " + trace + " 2>&1").c_str(), "r");
  ASSERT_NE(replay, nullptr);
  std::string told(4096, '\0');
  told.resize(fread(told.data(), 1, told.size(), replay));
  EXPECT_EQ(pclose(replay), 0);
  EXPECT_THAT(told, AllOf(HasSubstr("; 8 jobs, 8 admissions, 0 preemptions, 0 refusals\n"),
                          HasSubstr("every decision was reproduced\n")));
  std::filesystem::remove(trace);
}

TEST(ServeTest, WhatIsNoAddressToListenOnIsWrongUsage) {
  for (const char* address : {"127.0.0.1:99999", "nonsense"}) {
    ServeProcess server(Demo({"--listen", address}));
    EXPECT_EQ(server.ExitCode(), 2);
    EXPECT_THAT(server.Log(), HasSubstr(std::string(address) + "' is not HOST:PORT"));
  }
}

TEST(ServeTest, TheCpuLevelIsTheOneAskedFor) {
  ServeProcess portable(Demo({"--listen", "127.0.0.1:0", "--cpu-level", "portable"}));
  ASSERT_NE(portable.Port(), "");
  EXPECT_THAT(portable.Log(), HasSubstr("device: cpu portable"));
  ServeProcess unknown(Demo({"--listen", "127.0.0.1:0", "--cpu-level", "mmx"}));
  EXPECT_EQ(unknown.ExitCode(), 1);
  EXPECT_THAT(unknown.Log(), HasSubstr("no cpu level is named \"mmx\"; there are: auto, portable"));
}

}  // namespace
}  // namespace sensorium
