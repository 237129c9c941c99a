#include "server/remote_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

constexpr int kMaxMessageBytes = 256 << 20;  // ours; the server has its own limit on requests
// Between two attempts to connect. gRPC's own 1 s and more would miss a server that just started.
constexpr int kReconnectMs = 200;

template <typename Response>
absl::Status ReadAll(grpc::ClientContext& context, grpc::ClientReader<Response>& reader,
                     const std::function<bool(const Response&)>& on_event) {
  Response response;
  bool wanted = true;
  while (reader.Read(&response)) {
    if (wanted && !on_event(response)) {
      wanted = false;
      context.TryCancel();  // what is on its way still has to be read
    }
  }
  const grpc::Status end = reader.Finish();
  return wanted ? FromGrpc(end) : absl::CancelledError("cancelled by the caller");
}

}  // namespace

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A machine behind a web proxy still talks to its own port 50051.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

RemoteClient::RemoteClient(std::string target, std::chrono::milliseconds connect_timeout)
    : target_(std::move(target)),
      connect_timeout_(connect_timeout),
      channel_(OpenChannel(target_)),
      stub_(v1::Inference::NewStub(channel_)) {}

absl::Status RemoteClient::Connect() {
  using std::chrono::system_clock;
  if (channel_->WaitForConnected(system_clock::now() + connect_timeout_)) return absl::OkStatus();
  // Why not, only a call tells; it fails at once where the last attempt to connect did.
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + std::chrono::milliseconds(kReconnectMs));
  v1::ListModelsResponse ignored;
  const grpc::Status status = stub_->ListModels(&context, v1::ListModelsRequest(), &ignored);
  if (status.ok()) return absl::OkStatus();
  const std::string reason =
      status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED
          ? absl::StrCat("no connection within ", connect_timeout_.count(), " ms")
          : status.error_message();
  return absl::UnavailableError(absl::StrCat("no server answers at ", target_, ": ", reason));
}

absl::Status RemoteClient::Generate(
    v1::GenerateRequest request, const std::function<bool(const v1::GenerateResponse&)>& on_event) {
  RETURN_IF_ERROR(Connect());
  grpc::ClientContext context;
  return ReadAll(context, *stub_->Generate(&context, request), on_event);
}

absl::Status RemoteClient::Transcribe(
    v1::TranscribeRequest request,
    const std::function<bool(const v1::TranscribeResponse&)>& on_event) {
  RETURN_IF_ERROR(Connect());
  grpc::ClientContext context;
  return ReadAll(context, *stub_->Transcribe(&context, request), on_event);
}

absl::StatusOr<v1::TokenizeResponse> RemoteClient::Tokenize(v1::TokenizeRequest request) {
  RETURN_IF_ERROR(Connect());
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Tokenize(&context, request, &response)));
  return response;
}

absl::StatusOr<v1::ListModelsResponse> RemoteClient::ListModels() {
  RETURN_IF_ERROR(Connect());
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->ListModels(&context, v1::ListModelsRequest(), &response)));
  return response;
}

}  // namespace sensorium
