#include "server/service.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert.h"

namespace sensorium {

namespace {

// absl's codes are gRPC's. Whoever wants the field or the time to retry finds them in the details.
grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      StatusDetails(status));
}

constexpr size_t kMaxTenantBytes = 64;

// INVALID_ARGUMENT: a tenant's name that has no place in a log line.
absl::StatusOr<CallContext> ContextOf(const grpc::CallbackServerContext& context) {
  CallContext call;
  const auto tenant = context.client_metadata().find("x-tenant");
  if (tenant != context.client_metadata().end()) {
    call.tenant.assign(tenant->second.data(), tenant->second.size());
    if (call.tenant.size() > kMaxTenantBytes) {
      return FieldError("x-tenant", absl::StrCat("has ", call.tenant.size(),
                                                 " bytes; the limit is ", kMaxTenantBytes));
    }
    for (const char c : call.tenant) {
      if (c < ' ' || c > '~') return FieldError("x-tenant", "is not printable ASCII");
    }
  }
  using std::chrono::system_clock;
  if (context.deadline() != system_clock::time_point::max()) {
    // A deadline of years would overflow the steady clock's type.
    const auto left = std::min<system_clock::duration>(context.deadline() - system_clock::now(),
                                                       std::chrono::hours(24 * 365));
    call.deadline = std::chrono::steady_clock::now() +
                    std::chrono::duration_cast<std::chrono::steady_clock::duration>(left);
  }
  return call;
}

// gRPC owns the request until the call is done and never reads it again once a handler has it, so
// that its media can be moved out instead of held twice.
template <typename Request>
Request&& TakeOver(const Request* request) {
  return std::move(*const_cast<Request*>(request));
}

template <typename Event>
const Usage* UsageOf(const Event& event) {
  if constexpr (std::is_same_v<Event, GenerateEvent>) {
    const auto* finished = std::get_if<GenerateFinished>(&event);
    return finished ? &finished->usage : nullptr;
  } else {
    const auto* finished = std::get_if<TranscribeFinished>(&event);
    return finished ? &finished->usage : nullptr;
  }
}

// A stream of events as a stream of messages: one StartWrite in flight, everything else waits in
// the request's own bounded queue, where the engine sees it and parks the sequence.
//
// Deletes itself in OnDone. What outlives it (a wake-up of the engine on its way) holds the Link.
template <typename Response, typename Event>
class StreamReactor : public grpc::ServerWriteReactor<Response> {
 public:
  StreamReactor(grpc::CallbackServerContext& context, std::shared_ptr<EventQueue<Event>> queue,
                TaskPool& publisher)
      : context_(context), queue_(std::move(queue)), link_(std::make_shared<Link>()) {
    link_->reactor = this;
    const auto wake = [link = link_, &publisher] {
      {
        std::lock_guard lock(link->mu);
        if (!link->reactor || link->posted) return;
        link->posted = true;
      }
      publisher.Post([link] {
        std::lock_guard lock(link->mu);
        link->posted = false;
        if (link->reactor) link->reactor->Advance();
      });
    };
    queue_->SetOnReady(wake);
    wake();  // for the events that were pushed before
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(link_->mu);
    writing_ = false;
    if (!ok) {
      End(absl::CancelledError("the client is gone"));
    } else {
      Advance();
    }
  }
  void OnCancel() override {  // the client cancelled or left, or the deadline passed
    std::lock_guard lock(link_->mu);
    cancelled_ = true;
    queue_->Cancel();
    if (!writing_) End(absl::CancelledError("the call was cancelled"));
  }
  void OnDone() override {
    queue_->SetOnReady(nullptr);
    queue_->Cancel();
    {
      std::lock_guard lock(link_->mu);
      link_->reactor = nullptr;
    }
    delete this;
  }

 private:
  struct Link {
    std::mutex mu;
    StreamReactor* reactor = nullptr;  // guarded by mu, as all below; null once the call is done
    bool posted = false;
  };

  // Sends the next event, if there is one and nothing is in flight. Holds link_->mu.
  void Advance() {
    if (writing_ || ended_) return;
    if (cancelled_) return End(absl::CancelledError("the call was cancelled"));
    const std::optional<Event> event = queue_->TryPop();
    if (!event) return;
    if (const auto* end = std::get_if<StreamEnd>(&*event)) {
      if (end->usage) usage_ = end->usage;
      return End(end->status);
    }
    if (const Usage* usage = UsageOf(*event)) usage_ = *usage;
    response_ = *ToProto(*event);
    writing_ = true;
    this->StartWrite(&response_);
  }
  void End(const absl::Status& status) {
    if (ended_) return;
    ended_ = true;
    queue_->Cancel();
    if (usage_) AddCost(*usage_);
    this->Finish(ToGrpc(status));
  }
  void AddCost(const Usage& usage) {
    const std::pair<const char*, int64_t> kCosts[] = {
        {"sensorium-encode-us", usage.encode_device_us},
        {"sensorium-prefill-us", usage.prefill_device_us},
        {"sensorium-decode-us", usage.decode_device_us},
        {"sensorium-kv-block-ms", usage.kv_block_ms}};
    for (const auto& [key, value] : kCosts) {
      context_.AddTrailingMetadata(key, absl::StrCat(value));
    }
  }

  grpc::CallbackServerContext& context_;  // lives until OnDone
  const std::shared_ptr<EventQueue<Event>> queue_;
  const std::shared_ptr<Link> link_;
  std::optional<Usage> usage_;  // of the last answer that finished, or of an early end
  Response response_;           // of the write in flight
  bool writing_ = false, ended_ = false, cancelled_ = false;  // guarded by link_->mu
};

// A call refused before it reached the engine.
template <typename Response>
class RefusedStream : public grpc::ServerWriteReactor<Response> {
 public:
  explicit RefusedStream(const absl::Status& status) { this->Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

class RefusedBidi
    : public grpc::ServerBidiReactor<v1::TranscribeStreamRequest, v1::TranscribeStreamResponse> {
 public:
  explicit RefusedBidi(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

// gRPC turns an exception thrown while a reactor is made into UNIMPLEMENTED, which would be a lie.
template <typename Make>
auto Guarded(const Make& make) -> decltype(make()) {
  using Reactor = std::remove_pointer_t<decltype(make())>;
  try {
    return make();
  } catch (const std::exception& e) {
    const absl::Status status = absl::InternalError(e.what());
    if constexpr (std::is_same_v<Reactor, grpc::ServerWriteReactor<v1::GenerateResponse>>) {
      return new RefusedStream<v1::GenerateResponse>(status);
    } else {
      return new RefusedStream<v1::TranscribeResponse>(status);
    }
  }
}

}  // namespace

InferenceService::InferenceService(Engine& engine) : engine_(engine) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return Guarded([&]() -> grpc::ServerWriteReactor<v1::GenerateResponse>* {
    const auto call = ContextOf(*context);
    if (!call.ok()) return new RefusedStream<v1::GenerateResponse>(call.status());
    auto converted = FromProto(TakeOver(request), *call);
    if (!converted.ok()) return new RefusedStream<v1::GenerateResponse>(converted.status());
    return new StreamReactor<v1::GenerateResponse, GenerateEvent>(
        *context, engine_.Generate(*std::move(converted)), publisher_);
  });
}

grpc::ServerWriteReactor<v1::TranscribeResponse>* InferenceService::Transcribe(
    grpc::CallbackServerContext* context, const v1::TranscribeRequest* request) {
  return Guarded([&]() -> grpc::ServerWriteReactor<v1::TranscribeResponse>* {
    const auto call = ContextOf(*context);
    if (!call.ok()) return new RefusedStream<v1::TranscribeResponse>(call.status());
    auto converted = FromProto(TakeOver(request), *call);
    if (!converted.ok()) return new RefusedStream<v1::TranscribeResponse>(converted.status());
    return new StreamReactor<v1::TranscribeResponse, TranscribeEvent>(
        *context, engine_.Transcribe(*std::move(converted)), publisher_);
  });
}

grpc::ServerBidiReactor<v1::TranscribeStreamRequest, v1::TranscribeStreamResponse>*
InferenceService::TranscribeStream(grpc::CallbackServerContext* context) {
  return new RefusedBidi(absl::UnimplementedError("TranscribeStream is not in this version"));
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto call = ContextOf(*context);
  if (!call.ok()) {
    reactor->Finish(ToGrpc(call.status()));
    return reactor;
  }
  blocking_.Post([this, context, reactor, request, response, call = *call] {
    TokenizeRequest tokenize = FromProto(TakeOver(request));
    tokenize.tenant = call.tenant;
    tokenize.deadline = call.deadline;
    tokenize.cancelled = [context] { return context->IsCancelled(); };
    const auto result = engine_.Tokenize(tokenize);
    if (result.ok()) *response = ToProto(*result);
    reactor->Finish(ToGrpc(result.status()));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest* request,
                                                       v1::ListModelsResponse* response) {
  *response = ToProto(engine_.ListModels());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace sensorium
