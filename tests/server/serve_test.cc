// `sensorium serve` as a process of its own: how it starts, refuses and ends.
#include <csignal>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/remote_client.h"
#include "tests/server/serve_process.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

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
