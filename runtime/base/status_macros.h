// Two macros that pass an absl::Status on: the caller-can-be-wrong path in one line.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define SENSORIUM_CONCAT_INNER(a, b) a##b
#define SENSORIUM_CONCAT(a, b) SENSORIUM_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                            \
  do {                                                   \
    if (absl::Status status_ = (expr); !status_.ok()) {  \
      return status_;                                    \
    }                                                    \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL(SENSORIUM_CONCAT(status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL(var, lhs, expr) \
  auto var = (expr);                          \
  if (!var.ok()) {                            \
    return var.status();                      \
  }                                           \
  lhs = std::move(var).value()
