// The command line in process and through a server: the same answers, the same errors.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/backend_factory.h"
#include "server/cli.h"
#include "server/local_client.h"
#include "server/remote_client.h"
#include "server/server.h"
#include "tests/server/run_command.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kModels = SENSORIUM_MODELS;

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  EXPECT_FALSE(text.str().empty()) << path;
  return text.str();
}

// One object a line; without `timing`, where two runs may differ.
std::vector<nlohmann::ordered_json> WithoutTiming(const std::string& lines) {
  std::vector<nlohmann::ordered_json> all;
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) {
    all.push_back(nlohmann::ordered_json::parse(line));
    all.back().erase("timing");
  }
  return all;
}

// One server for all tests: starting it takes longer than asking.
class ClientsTest : public ::testing::Test {
 protected:
  static std::unique_ptr<Engine> MakeEngine() {
    EngineConfig config;
    config.models = {{"molmo-mini", kModels + "/molmo-mini"},
                     {"whisper-mini", kModels + "/whisper-mini"}};
    auto backend = OpenBackend({.device = "cpu"});
    EXPECT_TRUE(backend.ok()) << backend.status();
    auto engine = Engine::Create(config, *std::move(backend));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  static void SetUpTestSuite() {
    engine_ = MakeEngine().release();
    ServerConfig config;
    config.listen = "127.0.0.1:0";
    auto server = Server::Start(config, *engine_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
    target_ = "127.0.0.1:" + std::to_string(server_->port());
  }
  static void TearDownTestSuite() {
    delete server_;
    delete engine_;
  }
  // The same command with the models' directories in process, and with their names at the server.
  static std::pair<Outcome, Outcome> RunBoth(const std::vector<std::string>& arguments,
                                             const std::string& model) {
    std::vector<std::string> here = arguments, there = arguments;
    here.insert(here.end(), {"--model", kModels + "/" + model});
    if (std::count(here.begin(), here.end(), "--audio")) {
      here.insert(here.end(), {"--speech-model", kModels + "/whisper-mini"});
    }
    there.insert(there.end(), {"--model", model, "--server", target_});
    return {RunCommand(here), RunCommand(there)};
  }

  static inline Engine* engine_ = nullptr;
  static inline Server* server_ = nullptr;
  static inline std::string target_;
};

TEST_F(ClientsTest, AnAnswerIsTheSameInProcessAndThroughTheServer) {
  const std::string picture = kModels + "/molmo-mini/shapes.png";
  const std::vector<std::vector<std::string>> kAsked = {
      {"--prompt", "Point to the blue square."},
      {"--prompt", "How many red circles are there?", "--logprobs", "3"},
      {"--prompt", "Describe this image.", "--temperature", "0.8", "--seed", "7", "--top-p", "0.9"},
      {"--prompt", "Describe this image.", "--max-tokens", "3"},
      {"--audio", kModels + "/whisper-mini/question.wav"},
  };
  for (std::vector<std::string> arguments : kAsked) {
    SCOPED_TRACE(testing::PrintToString(arguments));
    arguments.insert(arguments.begin(), {"generate", "--image", picture});
    const auto text = RunBoth(arguments, "molmo-mini");
    EXPECT_EQ(text.first.exit_code, 0) << text.first.err;
    EXPECT_EQ(text.second.exit_code, 0) << text.second.err;
    EXPECT_EQ(text.first.out, text.second.out);
    EXPECT_EQ(text.first.err, text.second.err);
    arguments.push_back("--json");
    const auto json = RunBoth(arguments, "molmo-mini");
    const auto here = WithoutTiming(json.first.out), there = WithoutTiming(json.second.out);
    ASSERT_EQ(here.size(), 1u);
    EXPECT_EQ(here, there);
    // And the plain text is the same answer.
    EXPECT_EQ(here[0]["text"].get<std::string>() + "\n", text.first.out);
    EXPECT_EQ(here[0]["token_ids"].size(), here[0]["usage"]["completion_tokens"]);
  }
}

TEST_F(ClientsTest, ATranscriptIsTheSameInProcessAndThroughTheServer) {
  const std::string morning = kModels + "/whisper-mini/morning.wav";
  const std::vector<std::vector<std::string>> kAsked = {
      {},
      {"--timestamps", "none"},
      {"--format", "srt"},
      {"--format", "vtt"},
      {"--no-condition-on-previous-text", "--language", "en", "--beam-size", "3"},
  };
  for (std::vector<std::string> arguments : kAsked) {
    SCOPED_TRACE(testing::PrintToString(arguments));
    arguments.insert(arguments.begin(), {"transcribe", morning});
    const auto text = RunBoth(arguments, "whisper-mini");
    EXPECT_EQ(text.first.exit_code, 0) << text.first.err;
    EXPECT_EQ(text.first.out, text.second.out);
    EXPECT_GT(text.first.out.size(), 20u);
    EXPECT_EQ(text.first.err, "");
    EXPECT_EQ(text.second.err, "");
  }
  const auto json = RunBoth(
      {"transcribe", morning, kModels + "/whisper-mini/pregunta.wav", "--json"}, "whisper-mini");
  const auto here = WithoutTiming(json.first.out), there = WithoutTiming(json.second.out);
  ASSERT_EQ(here.size(), 2u);
  EXPECT_EQ(here, there);
  EXPECT_GT(here[0]["segments"].size(), 1u);
  EXPECT_EQ(here[1]["language"], "es");
}

TEST_F(ClientsTest, AnErrorIsTheSameInProcessAndThroughTheServer) {
  const std::string wav = kModels + "/whisper-mini/question.wav";
  const std::vector<std::pair<std::string, std::vector<std::string>>> kWrong = {
      {"molmo-mini", {"generate", "--prompt", "p", "--temperature", "11"}},
      {"molmo-mini", {"generate", "--prompt", "p", "--logprobs", "21"}},
      {"molmo-mini", {"generate", "--prompt", "p", "--image", wav}},
      {"molmo-mini", {"generate", "--prompt", "p", "--max-tokens", "100000"}},
      {"whisper-mini", {"generate", "--prompt", "p"}},
      {"whisper-mini", {"transcribe", wav, "--language", "klingon"}},
      {"whisper-mini", {"transcribe", wav, "--best-of", "2"}},
      {"whisper-mini", {"transcribe", kModels + "/molmo-mini/small.png"}},
  };
  for (const auto& [model, arguments] : kWrong) {
    SCOPED_TRACE(testing::PrintToString(arguments));
    const auto [here, there] = RunBoth(arguments, model);
    EXPECT_EQ(here.exit_code, 1);
    EXPECT_EQ(there.exit_code, 1);
    EXPECT_THAT(here.err, StartsWith("sensorium: "));
    EXPECT_EQ(std::count(here.err.begin(), here.err.end(), '\n'), 1) << here.err;
    if (model != "whisper-mini" || arguments[0] != "generate") {
      EXPECT_EQ(here.err, there.err);  // that one lists the models there are
    }
    EXPECT_EQ(here.out, there.out);
  }
}

TEST_F(ClientsTest, PointsAreDrawnIntoAPng) {
  const std::string path = testing::TempDir() + "/clients_points.png";
  std::filesystem::remove(path);
  const std::string picture = kModels + "/molmo-mini/shapes.png";
  const Outcome outcome =
      RunCommand({"generate", "--server", target_, "--model", "molmo-mini", "--image", picture,
                  "--prompt", "Point to the blue square.", "--draw", path, "--timing"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.err, StartsWith("timing: queued "));
  const std::string marked = ReadFile(path);
  EXPECT_THAT(marked, StartsWith("\x89PNG"));
  const Outcome bare =
      RunCommand({"generate", "--server", target_, "--model", "molmo-mini", "--image", picture,
                  "--prompt", "Point to the blue square.", "--max-tokens", "1", "--draw", path});
  EXPECT_EQ(bare.exit_code, 0);
  EXPECT_THAT(bare.err, HasSubstr("no points"));
  EXPECT_NE(ReadFile(path), marked);
  EXPECT_EQ(
      RunCommand({"generate", "--server", target_, "--model", "molmo-mini", "--image", picture,
                  "--prompt", "Point to the blue square.", "--draw", "/nowhere/at/all.png"})
          .err,
      "sensorium: cannot write '/nowhere/at/all.png'\n");
}

TEST_F(ClientsTest, ABadRecordingDoesNotKeepTheNextOneWaiting) {
  const Outcome outcome = RunCommand(
      {"transcribe", "/nowhere.wav", kModels + "/molmo-mini/small.png",
       kModels + "/whisper-mini/question.wav", "--timestamps", "none", "--server", target_});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("/nowhere.wav"), HasSubstr("small.png: ")));
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1) << outcome.out;
}

TEST_F(ClientsTest, ModelsAreListedAlikeByAServerAndFromDirectories) {
  const Outcome here = RunCommand(
      {"models", "--model", kModels + "/molmo-mini", "--model", kModels + "/whisper-mini"});
  const Outcome there = RunCommand({"models", "--server", target_});
  EXPECT_EQ(here.exit_code, 0) << here.err;
  EXPECT_EQ(here.out, there.out);
  EXPECT_EQ(std::count(here.out.begin(), here.out.end(), '\n'), 3) << here.out;
  EXPECT_EQ(WithoutTiming(RunCommand({"models", "--json", "--server", target_}).out).size(), 2u);
}

TEST_F(ClientsTest, OptionsOfTheEngineAreSaidToChangeNothingAtAServer) {
  const std::string wav = kModels + "/whisper-mini/question.wav";
  const std::pair<std::vector<std::string>, const char*> kUnused[] = {
      {{"--cpu-level", "portable"}, "with --server, --cpu-level is the server's own"},
      {{"--kv-cache-mib", "7"}, "with --server, --kv-cache-mib is the server's own"},
      {{"--dtype", "bfloat16", "--threads", "1"}, "with --server, --dtype and --threads are the"},
  };
  for (const auto& [options, note] : kUnused) {
    std::vector<std::string> arguments = {"transcribe", wav, "--server", target_};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Outcome outcome = RunCommand(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(note));
  }
  const Outcome spoken = RunCommand({"generate", "--prompt", "Describe this image.", "--max-tokens",
                                     "1", "--server", target_, "--speech-model", "whisper-mini"});
  EXPECT_THAT(spoken.err, HasSubstr("--speech-model is the server's own"));
}

TEST_F(ClientsTest, TheCpuLevelInProcessIsTheOneAskedFor) {
  const Outcome portable =
      RunCommand({"transcribe", kModels + "/whisper-mini/question.wav", "--model",
                  kModels + "/whisper-mini", "--cpu-level", "portable", "--timestamps", "none"});
  EXPECT_EQ(portable.exit_code, 0) << portable.err;
  EXPECT_EQ(portable.out, "How many red circles are there?\n");
}

TEST_F(ClientsTest, ProbeTellsServingFromNotServingFromUnreachable) {
  const Outcome serving = RunCommand({"probe", target_});
  EXPECT_EQ(serving.out, "SERVING\n");
  EXPECT_EQ(serving.exit_code, 0);
  EXPECT_EQ(RunCommand({"probe", target_, "--service", "sensorium.v1.Inference"}).exit_code, 0);
  const Outcome unknown = RunCommand({"probe", target_, "--service", "no.such"});
  EXPECT_EQ(unknown.out, "NOT_SERVING\n");
  EXPECT_EQ(unknown.exit_code, 1);
  server_->SetServing(false);
  const Outcome stopped = RunCommand({"probe", target_});
  server_->SetServing(true);
  EXPECT_EQ(stopped.out, "NOT_SERVING\n");
  EXPECT_EQ(stopped.exit_code, 1);
  const Outcome nobody = RunCommand({"probe", "127.0.0.1:1"});
  EXPECT_EQ(nobody.out, "UNREACHABLE\n");
  EXPECT_EQ(nobody.exit_code, 1);
}

TEST_F(ClientsTest, ALostServerIsNamedWithTheReason) {
  RemoteClient client("127.0.0.1:1", std::chrono::milliseconds(50));
  const absl::Status status = client.ListModels().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), StartsWith("no server answers at 127.0.0.1:1: "));
}

// Whoever says false gets CANCELLED, hears nothing more, and leaves nothing behind in the engine.
TEST_F(ClientsTest, SayingNoMoreCancelsTheCall) {
  LocalClient local(MakeEngine());
  RemoteClient remote(target_);
  for (InferenceClient* client : std::initializer_list<InferenceClient*>{&local, &remote}) {
    v1::GenerateRequest request;
    request.set_model("molmo-mini");
    v1::Message& message = *request.add_messages();
    message.set_role(v1::USER);
    message.add_parts()->mutable_image()->set_data(ReadFile(kModels + "/molmo-mini/wide.png"));
    message.add_parts()->set_text("Describe this image.");
    int heard = 0;
    const absl::Status status =
        client->Generate(request, [&](const v1::GenerateResponse&) { return ++heard < 2; });
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    EXPECT_EQ(heard, 2);
    v1::TokenizeRequest tokenize;
    tokenize.set_model("molmo-mini");
    tokenize.set_text("Describe this image.");
    const auto tokens = client->Tokenize(tokenize);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_GT(tokens->token_ids_size(), 2);
  }
}

}  // namespace
}  // namespace sensorium
