// Reads what a status carries in grpc-status-details-bin.
#pragma once

#include <optional>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "grpcpp/grpcpp.h"

namespace sensorium {

// The detail of that type in a serialised google.rpc.Status; nullopt: there is none.
template <typename Message>
std::optional<Message> Detail(const std::string& details) {
  google::rpc::Status status;
  if (!status.ParseFromString(details)) return std::nullopt;
  for (const auto& any : status.details()) {
    Message message;
    if (any.UnpackTo(&message)) return message;
  }
  return std::nullopt;
}

// Of ErrorInfo; "" when there is none, or it is not this server's.
inline std::string Reason(const grpc::Status& status) {
  const auto info = Detail<google::rpc::ErrorInfo>(status.error_details());
  return info && info->domain() == "sensorium" ? info->reason() : "";
}

}  // namespace sensorium
