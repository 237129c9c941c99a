#include "cuda/token_answers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"

namespace sensorium::cuda {

static_assert(sizeof(TokenEdit) == sizeof(LogitEdit) &&
              offsetof(TokenEdit, penalty) == offsetof(LogitEdit, penalty));
static_assert(sizeof(Choice) % 8 == 0 && sizeof(ChoiceAnswer) % 8 == 0);
static_assert(kMostLikeliest == TokenChoice::kMostLikeliest);

void TokenAnswers::Reserve(size_t choices, size_t numbers, size_t upload_bytes) {
  pending_.reserve(choices);  // an Ask has one choice at the least
  numbers_.reserve(numbers);
  choices_.reserve(choices);
  packed_.reserve(4 * choices);  // banned twice, edits, asked
  arrays_.reserve(upload_bytes / 2);
}

uint32_t TokenAnswers::Pack(std::span<const std::byte> array) {
  if (array.empty()) return 0;
  for (const Packed& p : packed_) {
    if (p.array.data() == array.data() && p.array.size() == array.size()) return p.offset;
  }
  const size_t offset = arrays_.size();
  arrays_.insert(arrays_.end(), array.begin(), array.end());
  packed_.push_back({array, static_cast<uint32_t>(offset)});
  return static_cast<uint32_t>(offset);
}

size_t TokenAnswers::Ask(std::span<ChosenToken> chosen, ConstTensorView logits,
                         std::span<const TokenChoice> choices, Uploads& uploads,
                         CudaBuffer& scratch, Queue& queue) {
  const auto vocab = logits.dim(1);
  CHECK_LE(vocab, kMostVocab);
  // Half of the upload buffer, so that a full one is not waited for at every call.
  const size_t most_sent = uploads.capacity_bytes() / 2;
  const size_t most_answered = std::min(answers_->size_bytes() - used_, scratch.size_bytes());
  packed_.clear();
  arrays_.clear();
  choices_.clear();
  size_t answered = 0;
  bool edits = false;
  for (const TokenChoice& c : choices) {
    const auto num_asked = static_cast<int64_t>(c.asked.size());
    const size_t answer_bytes = AnswerBytes(c.num_likeliest, num_asked);
    const size_t sent = c.banned[0].size_bytes() + c.banned[1].size_bytes() + c.edits.size_bytes() +
                        c.asked.size_bytes() + sizeof(Choice);
    CHECK_LE(sent + 8, most_sent) << "bytes of one choice";
    CHECK_LE(answer_bytes, std::min(answers_->size_bytes(), scratch.size_bytes()));
    if (arrays_.size() + choices_.size() * sizeof(Choice) + sent + 8 > most_sent ||
        answered + answer_bytes > most_answered) {
      break;
    }
    Choice& choice = choices_.emplace_back();
    choice = {};
    choice.logits = logits.as<const float>() + c.row * logits.row_stride();
    choice.seed = c.seed, choice.stream = c.stream, choice.position = c.position;
    for (int i = 0; i < 2; ++i) {
      choice.banned[i] = Pack(std::as_bytes(c.banned[i]));
      choice.num_banned[i] = static_cast<int32_t>(c.banned[i].size());
    }
    choice.edits = Pack(std::as_bytes(c.edits));
    choice.num_edits = static_cast<int32_t>(c.edits.size());
    choice.asked = Pack(std::as_bytes(c.asked));
    choice.num_asked = static_cast<int32_t>(num_asked);
    for (int i = 0; i < 4; ++i) {
      choice.range_from[i] = c.banned_ranges[i].from;
      choice.range_to[i] = c.banned_ranges[i].to;
    }
    choice.timestamp_begin = c.timestamp_begin;
    choice.num_likeliest = c.num_likeliest;
    choice.top_k = c.top_k;
    choice.temperature = c.temperature;
    choice.top_p = c.top_p;
    choice.log_min_p = c.min_p > 0 ? std::log(c.min_p) : -std::numeric_limits<float>::infinity();
    choice.answer = static_cast<uint32_t>(answered);
    answered += answer_bytes;
    edits |= !c.edits.empty();
  }
  if (choices_.empty()) return 0;

  arrays_.resize((arrays_.size() + 7) / 8 * 8);
  const size_t choices_at = arrays_.size();
  const auto choice_bytes = std::as_bytes(std::span(std::as_const(choices_)));
  arrays_.insert(arrays_.end(), choice_bytes.begin(), choice_bytes.end());
  uploads.Reserve(arrays_.size());
  const std::byte* sent = uploads.PutBytes(arrays_, /*owner=*/nullptr);
  ChooseTokens(reinterpret_cast<const Choice*>(sent + choices_at),
               static_cast<int64_t>(choices_.size()), sent, scratch.data(), vocab, edits, queue);
  CUDA_CHECK(cudaMemcpyAsync(answers_->data() + used_, scratch.data(), answered,
                             cudaMemcpyDeviceToHost, queue.stream()));
  pending_.push_back({chosen.first(choices_.size()), used_});
  used_ += answered;
  return choices_.size();
}

bool TokenAnswers::AskNumber(float& to, const float* from, Queue& queue) {
  constexpr size_t kBytes = 8;  // what lies behind it keeps its alignment
  if (answers_->size_bytes() - used_ < kBytes) return false;
  CUDA_CHECK(cudaMemcpyAsync(answers_->data() + used_, from, sizeof(float), cudaMemcpyDeviceToHost,
                             queue.stream()));
  numbers_.push_back({&to, used_});
  used_ += kBytes;
  return true;
}

void TokenAnswers::Deliver() {
  for (const PendingNumber& number : numbers_) {
    std::memcpy(number.to, answers_->data() + number.offset, sizeof(float));
  }
  for (const Pending& pending : pending_) {
    const std::byte* at = answers_->data() + pending.offset;
    for (ChosenToken& chosen : pending.chosen) {
      ChoiceAnswer answer;
      std::memcpy(&answer, at, sizeof(answer));
      const std::byte* likeliest = at + sizeof(answer);
      at += AnswerBytes(static_cast<int64_t>(chosen.likeliest.size()),
                        static_cast<int64_t>(chosen.asked.size()));
      const std::byte* asked = likeliest + chosen.likeliest.size() * sizeof(LikelyToken);
      chosen.token = answer.token;
      chosen.logprob = answer.logprob;
      chosen.raw_log_sum_exp = chosen.asked.empty() ? 0 : answer.raw_log_sum_exp;
      chosen.likeliest = chosen.likeliest.first(static_cast<size_t>(answer.num_likeliest));
      for (TokenLogProb& to : chosen.likeliest) {
        LikelyToken token;
        std::memcpy(&token, likeliest, sizeof(token));
        to = {token.id, token.logprob};
        likeliest += sizeof(token);
      }
      if (!chosen.asked.empty()) {  // memcpy takes no null
        std::memcpy(chosen.asked.data(), asked, chosen.asked.size_bytes());
      }
    }
  }
  Drop();
}

void TokenAnswers::Drop() {
  pending_.clear();
  numbers_.clear();
  used_ = 0;
}

}  // namespace sensorium::cuda
