// The whole line through a real gRPC connection: the bundled models, one server, many clients.
#include <chrono>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"
#include "google/rpc/error_details.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "sensorium/v1/sensorium.grpc.pb.h"
#include "server/backend_factory.h"
#include "server/convert.h"
#include "server/server.h"
#include "tests/server/error_details.h"
#include "tests/server/freezable_proxy.h"

namespace sensorium {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  EXPECT_FALSE(text.str().empty()) << path;
  return text.str();
}
std::string ModelFile(const std::string& name) {
  return ReadFile(std::string(SENSORIUM_MODELS) + "/" + name);
}

struct Answer {
  grpc::Status status;
  std::string text, delta_text, heard;
  std::vector<int32_t> token_ids;
  std::vector<v1::Point> points;
  v1::Usage usage;
};

class ServiceTest : public ::testing::Test {
 protected:
  static EngineConfig Models() {
    EngineConfig config;
    config.models = {{"molmo-mini", std::string(SENSORIUM_MODELS) + "/molmo-mini"},
                     {"whisper-mini", std::string(SENSORIUM_MODELS) + "/whisper-mini"}};
    return config;
  }
  void Start(const EngineConfig& engine_config = Models(), ServerConfig config = {}) {
    auto backend = OpenBackend({.device = "cpu"});
    ASSERT_TRUE(backend.ok()) << backend.status();
    auto engine = Engine::Create(engine_config, *std::move(backend));
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    config.listen = "127.0.0.1:0";
    config_ = config;
    auto server = Server::Start(config, *engine_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
  }

  static v1::GenerateRequest Ask(const std::string& question, const std::string& image = "") {
    v1::GenerateRequest request;
    request.set_echo_token_ids(true);
    v1::Message& message = *request.add_messages();
    message.set_role(v1::USER);
    if (!image.empty()) message.add_parts()->mutable_image()->set_data(ModelFile(image));
    if (!question.empty()) message.add_parts()->set_text(question);
    return request;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    Answer answer;
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (response.has_started()) answer.heard = response.started().heard();
      if (response.has_delta()) {
        answer.delta_text += response.delta().text();
        for (const int32_t id : response.delta().token_ids()) answer.token_ids.push_back(id);
      }
      if (response.has_point()) answer.points.push_back(response.point());
      if (response.has_finished()) {
        answer.text = response.finished().text();
        answer.usage = response.finished().usage();
      }
    }
    answer.status = reader->Finish();
    return answer;
  }
  std::string Transcribe(const std::string& recording, grpc::Status* status = nullptr) {
    v1::TranscribeRequest request;
    request.set_audio(ModelFile(recording));
    grpc::ClientContext context;
    auto reader = stub_->Transcribe(&context, request);
    v1::TranscribeResponse response;
    std::string text;
    while (reader->Read(&response)) {
      if (response.has_finished()) text = response.finished().text();
    }
    const grpc::Status end = reader->Finish();
    EXPECT_TRUE(end.ok()) << end.error_message();
    return text;
  }
  // Everything a request owned is free; waits for the step that frees it.
  void ExpectNothingOwned() {
    for (int i = 0; i < 5000; ++i) {
      const EngineStats stats = engine_->Stats();
      if (stats.blocks_used == 0 && stats.blocks_reserved == 0 && stats.requests_running == 0 &&
          stats.requests_waiting == 0 && stats.media_bytes == 0) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const EngineStats stats = engine_->Stats();
    ADD_FAILURE() << stats.blocks_used << " blocks used, " << stats.blocks_reserved << " reserved, "
                  << stats.requests_running << " requests running, " << stats.media_bytes
                  << " media bytes";
  }

  ServerConfig config_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(ServiceTest, AnswersAboutPicturesWithTheReferencesTokens) {
  Start();
  const auto expected = nlohmann::json::parse(ModelFile("molmo-mini/answers.json"));
  int asked = 0;
  for (const auto& c : expected) {
    const Answer answer = Generate(
        Ask(c["question"].get<std::string>(), "molmo-mini/" + c["image"].get<std::string>()));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.token_ids, c["greedy_ids"].get<std::vector<int32_t>>()) << c["question"];
    EXPECT_EQ(answer.text, answer.delta_text);
    ++asked;
  }
  EXPECT_GT(asked, 3);
  ExpectNothingOwned();
}

TEST_F(ServiceTest, ASpokenQuestionAboutAPictureIsHeardAndAnswered) {
  Start();
  v1::GenerateRequest request = Ask("", "molmo-mini/shapes.png");
  request.mutable_messages(0)->add_parts()->mutable_audio()->set_data(
      ModelFile("whisper-mini/question.wav"));
  const Answer spoken = Generate(request);
  ASSERT_TRUE(spoken.status.ok()) << spoken.status.error_message();
  EXPECT_THAT(spoken.heard, HasSubstr("How many"));
  const Answer written = Generate(Ask(spoken.heard, "molmo-mini/shapes.png"));
  EXPECT_EQ(spoken.token_ids, written.token_ids);
}

TEST_F(ServiceTest, WhatACallCostIsInItsLastMessageAndInTheTrailingMetadata) {
  Start();
  grpc::ClientContext context;
  auto reader =
      stub_->Generate(&context, Ask("How many red circles are there?", "molmo-mini/shapes.png"));
  v1::GenerateResponse response;
  v1::Usage usage;
  while (reader->Read(&response)) {
    if (response.has_finished()) usage = response.finished().usage();
  }
  ASSERT_TRUE(reader->Finish().ok());
  const auto& trailing = context.GetServerTrailingMetadata();
  const std::pair<const char*, int64_t> kCosts[] = {
      {"sensorium-encode-us", usage.encode_device_us()},
      {"sensorium-prefill-us", usage.prefill_device_us()},
      {"sensorium-decode-us", usage.decode_device_us()},
      {"sensorium-kv-block-ms", usage.kv_block_ms()}};
  for (const auto& [name, cost] : kCosts) {
    const auto found = trailing.find(name);
    ASSERT_NE(found, trailing.end()) << name;
    EXPECT_EQ(std::string(found->second.data(), found->second.size()), std::to_string(cost));
    EXPECT_GT(cost, 0) << name;
  }
}

TEST_F(ServiceTest, ACallThatEndsEarlyStillTellsItsCost) {
  Start();
  v1::TranscribeRequest request;
  request.set_audio(ModelFile("whisper-mini/morning.wav"));
  grpc::ClientContext context;
  auto reader = stub_->Transcribe(&context, request);
  v1::TranscribeResponse response;
  ASSERT_TRUE(reader->Read(&response));  // its first window is encoded, and the language known
  engine_->Drain(std::chrono::steady_clock::now());  // has the rest cancelled
  while (reader->Read(&response)) ASSERT_FALSE(response.has_finished()) << "it ended too soon";
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  const auto& trailing = context.GetServerTrailingMetadata();
  for (const char* name : {"sensorium-encode-us", "sensorium-prefill-us"}) {
    const auto found = trailing.find(name);
    ASSERT_NE(found, trailing.end()) << name;
    EXPECT_GT(std::stoll(std::string(found->second.data(), found->second.size())), 0) << name;
  }
  EXPECT_NE(trailing.find("sensorium-kv-block-ms"), trailing.end());
  ExpectNothingOwned();
}

TEST_F(ServiceTest, ManyClientsAtOnceGetWhatEachGetsAlone) {
  Start();
  const std::vector<std::string> questions = {"How many red circles are there?",
                                              "Point to the blue square.", "Describe this image."};
  std::vector<Answer> alone;
  for (const std::string& q : questions) alone.push_back(Generate(Ask(q, "molmo-mini/shapes.png")));
  const std::string heard_alone = Transcribe("whisper-mini/pointing.wav");
  std::vector<std::thread> clients;
  for (int i = 0; i < 9; ++i) {
    clients.emplace_back([&, i] {
      const size_t q = i % questions.size();
      const Answer answer = Generate(Ask(questions[q], "molmo-mini/shapes.png"));
      EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
      EXPECT_EQ(answer.token_ids, alone[q].token_ids);
      EXPECT_EQ(answer.points.size(), alone[q].points.size());
      EXPECT_EQ(Transcribe("whisper-mini/pointing.wav"), heard_alone);
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingOwned();
}

TEST_F(ServiceTest, ACancelledStreamFreesEverythingItOwned) {
  Start();
  v1::GenerateRequest request = Ask("Describe this image.", "molmo-mini/wide.png");
  request.set_n(4);
  request.mutable_sampling()->set_temperature(1);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingOwned();
}

// Nobody says that it is gone: no FIN, no RST, no answer to a ping.
TEST_F(ServiceTest, AClientThatVanishedFreesEverythingItOwned) {
  ServerConfig config;
  config.keepalive_seconds = 0.3;
  config.keepalive_timeout_seconds =
      2;  // a busy machine's living client must not pass for a dead one
  Start(Models(), config);
  FreezableProxy proxy(server_->port());
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(
      "127.0.0.1:" + std::to_string(proxy.port()), grpc::InsecureChannelCredentials()));
  // More than the connection's windows hold, so that it cannot end unread.
  v1::GenerateRequest request = Ask("Describe this image.", "molmo-mini/wide.png");
  const auto end =
      nlohmann::json::parse(ModelFile("molmo-mini/answers.json"))[0]["greedy_ids"].back();
  (*request.mutable_sampling()->mutable_logit_bias())[end.get<int32_t>()] = -100;
  request.set_max_tokens(1800);
  request.set_n(4);
  request.set_logprobs(20);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, request);
  v1::GenerateResponse response;
  do {
    ASSERT_TRUE(reader->Read(&response));
  } while (!response.has_delta());
  proxy.Freeze();
  EXPECT_GT(engine_->Stats().blocks_used, 0);
  ExpectNothingOwned();
  context.TryCancel();
}

TEST_F(ServiceTest, ADeadlineEndsTheCallAndFreesEverything) {
  Start();
  v1::TranscribeRequest request;
  request.set_audio(ModelFile("whisper-mini/morning.wav"));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(5));
  auto reader = stub_->Transcribe(&context, request);
  v1::TranscribeResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingOwned();
}

TEST_F(ServiceTest, ErrorsSayWhatIsWrongAndWhichField) {
  Start();
  v1::GenerateRequest request = Ask("hm");
  request.mutable_sampling()->set_top_p(2);
  Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const auto bad = Detail<google::rpc::BadRequest>(answer.status.error_details());
  ASSERT_TRUE(bad.has_value());
  EXPECT_EQ(bad->field_violations(0).field(), "sampling.top_p");
  EXPECT_EQ(Reason(answer.status), "INVALID_ARGUMENT");

  request = Ask("hm");
  request.set_model("molmo-max");
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("molmo-mini"));
  EXPECT_EQ(Reason(answer.status), "NOT_FOUND");

  request = Ask("hm");
  request.mutable_messages(0)->add_parts()->mutable_image()->set_data("no picture");
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Reason(answer.status), "INVALID_ARGUMENT");

  request = Ask("hm");
  request.set_max_tokens(1'000'000);
  EXPECT_THAT(Generate(request).status.error_message(),
              HasSubstr("max_tokens is 1000000; the limit is 4096"));
  ExpectNothingOwned();
}

TEST_F(ServiceTest, ErrorsOfEveryKindOfCallCarryTheirReason) {
  Start();
  grpc::ClientContext unary;
  v1::TokenizeRequest tokenize;
  tokenize.set_model("nobody");
  v1::TokenizeResponse tokens;
  EXPECT_EQ(Reason(stub_->Tokenize(&unary, tokenize, &tokens)), "NOT_FOUND");

  grpc::ClientContext bidi;
  auto stream = stub_->TranscribeStream(&bidi);
  stream->WritesDone();
  EXPECT_EQ(Reason(stream->Finish()), "UNIMPLEMENTED");
}

TEST_F(ServiceTest, AFullServerSaysWhenToComeBack) {
  EngineConfig config = Models();
  config.max_waiting = 0;
  config.max_batch_seqs = 1;
  Start(config);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  std::optional<grpc::Status> refused;
  for (int i = 0; i < 200 && !refused; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    auto reader =
        stub_->Generate(contexts.back().get(), Ask("Describe this image.", "molmo-mini/wide.png"));
    v1::GenerateResponse response;
    if (i > 0 && !reader->Read(&response)) {
      refused = reader->Finish();
    } else {
      readers.push_back(std::move(reader));
    }
  }
  for (auto& context : contexts) context->TryCancel();
  for (auto& reader : readers) {
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    reader->Finish();
  }
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(*refused), "RESOURCE_EXHAUSTED");
  EXPECT_THAT(refused->error_message(), HasSubstr("1 requests run or wait; the limit is 1"));
  EXPECT_TRUE(Detail<google::rpc::RetryInfo>(refused->error_details()).has_value());
}

TEST_F(ServiceTest, ATenantsNameIsShortAndPrintable) {
  Start();
  const auto tokenize = [&](const std::string& tenant) {
    grpc::ClientContext context;
    context.AddMetadata("x-tenant", tenant);
    v1::TokenizeRequest request;
    request.set_model("molmo-mini");
    request.set_text("hello");
    v1::TokenizeResponse response;
    return stub_->Tokenize(&context, request, &response);
  };
  EXPECT_TRUE(tokenize(std::string(64, 'a')).ok());
  const grpc::Status refused = tokenize(std::string(65, 'a'));
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("65 bytes; the limit is 64"));
}

TEST_F(ServiceTest, AMessageAboveTheLimitIsRefused) {
  ServerConfig config;
  config.max_message_bytes = 1 << 20;
  Start(Models(), config);
  v1::TranscribeRequest request;
  request.set_audio(std::string(2 << 20, 'x'));
  grpc::ClientContext context;
  auto reader = stub_->Transcribe(&context, request);
  v1::TranscribeResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, TranscribeStreamIsNotInThisVersion) {
  Start();
  grpc::ClientContext context;
  auto stream = stub_->TranscribeStream(&context);
  stream->WritesDone();
  v1::TranscribeStreamResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServiceTest, TokenizeTellsWhatAPictureAndARecordingCost) {
  Start();
  v1::TokenizeRequest request;
  request.set_model("molmo-mini");
  request.set_text("How many red circles are there?");
  request.set_image(ModelFile("molmo-mini/shapes.png"));
  request.set_chat(true);
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  const grpc::Status status = stub_->Tokenize(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.image_tokens(), 88);
  EXPECT_EQ(response.image_crops(), 2);
  EXPECT_EQ(response.token_ids_size(), response.tokens_size());
  const Answer answer = Generate(Ask("How many red circles are there?", "molmo-mini/shapes.png"));
  EXPECT_EQ(answer.usage.prompt_tokens(), response.token_ids_size());

  request = {};
  request.set_model("whisper-mini");
  request.set_audio(ModelFile("whisper-mini/morning.wav"));
  grpc::ClientContext second;
  ASSERT_TRUE(stub_->Tokenize(&second, request, &response).ok());
  EXPECT_GT(response.audio_ms(), 16'000);
  EXPECT_EQ(response.audio_windows(), 3);
}

TEST_F(ServiceTest, ListsItsModels) {
  Start();
  v1::ListModelsResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &response).ok());
  ASSERT_EQ(response.models_size(), 2);
  EXPECT_EQ(response.models(0).name(), "molmo-mini");
  EXPECT_TRUE(response.models(0).image_in());
  EXPECT_EQ(response.models(1).kind(), "whisper");
  EXPECT_EQ(response.models(1).window_ms(), 8000);
  EXPECT_THAT(response.models(1).languages(), Contains("es"));
}

TEST_F(ServiceTest, HealthTellsServingAndWatchersHearOfTheEnd) {
  Start();
  auto health = grpc::health::v1::Health::NewStub(channel_);
  using grpc::health::v1::HealthCheckResponse;
  for (const char* name : {"", "sensorium.v1.Inference"}) {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    HealthCheckResponse response;
    grpc::ClientContext context;
    ASSERT_TRUE(health->Check(&context, request, &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING) << name;
  }
  grpc::ClientContext context;
  auto watch = health->Watch(&context, {});
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->SetServing(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  context.TryCancel();
}

// One question to grpc.reflection.v1alpha, in protobuf's text format, as its answer's. Its messages
// come from the pool, since Debian has the library without a header for them.
std::string AskReflection(grpc::Channel& channel, const std::string& question) {
  using google::protobuf::DescriptorPool;
  using google::protobuf::MessageFactory;
  const auto make = [](const std::string& name) {
    const auto* type =
        DescriptorPool::generated_pool()->FindMessageTypeByName("grpc.reflection.v1alpha." + name);
    return std::unique_ptr<google::protobuf::Message>(
        MessageFactory::generated_factory()->GetPrototype(type)->New());
  };
  const auto request = make("ServerReflectionRequest"), response = make("ServerReflectionResponse");
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(question, request.get()));
  const grpc::internal::RpcMethod method(
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      grpc::internal::RpcMethod::BIDI_STREAMING);
  grpc::ClientContext context;
  using Stream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
  const std::unique_ptr<Stream> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          &channel, method, &context));
  const grpc::Slice sent(request->SerializeAsString());
  EXPECT_TRUE(stream->Write(grpc::ByteBuffer(&sent, 1)));
  stream->WritesDone();
  grpc::ByteBuffer got;
  EXPECT_TRUE(stream->Read(&got));
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(got.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& s : slices) {
    bytes.append(reinterpret_cast<const char*>(s.begin()), s.size());
  }
  EXPECT_TRUE(response->ParseFromString(bytes));
  EXPECT_TRUE(stream->Finish().ok());
  return response->DebugString();
}

TEST_F(ServiceTest, ReflectionListsAndDescribesEveryService) {
  Start();
  const std::string services = AskReflection(*channel_, "list_services: ''");
  for (const char* name : {"sensorium.v1.Inference", "grpc.health.v1.Health"}) {
    EXPECT_THAT(services, HasSubstr(std::string("name: \"") + name + "\""));
    const std::string file =
        AskReflection(*channel_, std::string("file_containing_symbol: '") + name + "'");
    EXPECT_THAT(file, HasSubstr("file_descriptor_proto"));
    EXPECT_THAT(file, ::testing::Not(HasSubstr("error_response")));
  }
  EXPECT_THAT(AskReflection(*channel_, "file_containing_symbol: 'grpc.health.v1.Health'"),
              HasSubstr("HealthCheckRequest"));
}

TEST_F(ServiceTest, DrainingFinishesWhatRunsAndRefusesWhatComes) {
  Start();
  v1::TranscribeRequest request;
  request.set_audio(ModelFile("whisper-mini/morning.wav"));
  grpc::ClientContext context;
  auto reader = stub_->Transcribe(&context, request);
  v1::TranscribeResponse response;
  ASSERT_TRUE(reader->Read(&response));  // it runs
  std::thread drain([&] { server_->Drain(); });
  std::string text;
  do {
    if (response.has_finished()) text = response.finished().text();
  } while (reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_FALSE(text.empty());
  drain.join();
  EXPECT_EQ(Generate(Ask("late?")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  ExpectNothingOwned();
}

TEST_F(ServiceTest, ASecondServerOnThePortIsAClearError) {
  Start();
  ServerConfig config = config_;
  config.listen = "127.0.0.1:" + std::to_string(server_->port());
  const auto second = Server::Start(config, *engine_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("the port is in use"));
}

}  // namespace
}  // namespace sensorium
