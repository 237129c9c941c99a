// sensorium.v1.Inference on gRPC's callback API. A callback never blocks: streams are fed from a
// publisher thread that the engine wakes, and what decodes media runs on a thread of its own.
#pragma once

#include "runtime/engine/engine.h"
#include "runtime/engine/task_pool.h"
#include "sensorium/v1/sensorium.grpc.pb.h"

namespace sensorium {

// Thread-safe. The engine must outlive it; the gRPC server must be shut down before it goes.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(Engine& engine);

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerWriteReactor<v1::TranscribeResponse>* Transcribe(
      grpc::CallbackServerContext* context, const v1::TranscribeRequest* request) override;
  grpc::ServerBidiReactor<v1::TranscribeStreamRequest, v1::TranscribeStreamResponse>*
  TranscribeStream(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

 private:
  Engine& engine_;
  TaskPool publisher_{1};  // events -> messages -> the wire
  TaskPool blocking_{1};   // Tokenize decodes media
};

}  // namespace sensorium
