// What the device answers a step with: the host's side of ChooseTokens, and single numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/kernels/choose_tokens.h"
#include "cuda/kernels/queue.h"
#include "cuda/uploads.h"
#include "runtime/backend/tensor.h"
#include "runtime/backend/token_choice.h"

namespace sensorium::cuda {

// Choices go up in one copy, their answers come down in one, into pinned memory where they lie
// until the queue has been waited for. Engine thread only.
class TokenAnswers {
 public:
  explicit TokenAnswers(std::unique_ptr<PinnedBuffer> answers) : answers_(std::move(answers)) {}
  TokenAnswers(const TokenAnswers&) = delete;
  TokenAnswers& operator=(const TokenAnswers&) = delete;

  // So many choices and numbers are asked for until Deliver at most, through uploads of this size:
  // no Ask takes memory then.
  void Reserve(size_t choices, size_t numbers, size_t upload_bytes);
  // Queues as many of the choices as uploads, scratch and the room for answers take, at least one,
  // and says how many. 0: there is no room until Deliver. Their answers go to `chosen`.
  size_t Ask(std::span<ChosenToken> chosen, ConstTensorView logits,
             std::span<const TokenChoice> choices, Uploads& uploads, CudaBuffer& scratch,
             Queue& queue);
  // Queues the copy of a number of the device's; it is at `to` behind Deliver. false: there is no
  // room until then.
  bool AskNumber(float& to, const float* from, Queue& queue);
  // Hands out what has come. REQUIRES: the queue was waited for since the last Ask
  void Deliver();
  // Nothing will come any more: the device broke.
  void Drop();

 private:
  struct Pending {
    std::span<ChosenToken> chosen;
    size_t offset;  // of the first answer
  };
  struct PendingNumber {
    float* to;
    size_t offset;
  };
  // The offset of the array in arrays_, where the same span lies only once.
  uint32_t Pack(std::span<const std::byte> array);

  const std::unique_ptr<PinnedBuffer> answers_;
  size_t used_ = 0;  // of answers_
  std::vector<Pending> pending_;
  std::vector<PendingNumber> numbers_;
  // Of one Ask; grow-only.
  struct Packed {
    std::span<const std::byte> array;
    uint32_t offset;
  };
  std::vector<Packed> packed_;
  std::vector<std::byte> arrays_;  // as they are sent, the choices behind them
  std::vector<Choice> choices_;
};

}  // namespace sensorium::cuda
