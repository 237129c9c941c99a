// CudaBackend's products: linear layers, convolutions, mixtures of experts.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "cuda/carve.h"
#include "cuda/cuda_backend.h"
#include "cuda/cuda_error.h"
#include "cuda/kernels/conv1d.h"
#include "cuda/kernels/convert_rows.h"
#include "cuda/kernels/moe.h"
#include "cuda/kernels/silu_mul.h"
#include "cuda/views.h"
#include "runtime/base/check.h"

namespace sensorium {
namespace {

using cuda::Carve;
using cuda::CeilDiv;
using cuda::CudaLinear;
using cuda::RowsOf;

const CudaLinear& Packed(const LinearWeight& w) {
  const auto* packed = dynamic_cast<const CudaLinear*>(&w);
  CHECK(packed != nullptr) << "this weight was packed by another backend";
  return *packed;
}

cuda::Activation ActivationOf(Activation a) {
  switch (a) {
    case Activation::kNone:
      return cuda::Activation::kNone;
    case Activation::kGelu:
      return cuda::Activation::kGelu;
    case Activation::kQuickGelu:
      return cuda::Activation::kQuickGelu;
  }
  CHECK(false) << static_cast<int>(a);
  return cuda::Activation::kNone;
}

cuda::LinearProblem ProblemOf(const CudaLinear& w, cuda::Type type) {
  return {.y = {},
          .x = {},
          .rows = 0,
          .in = w.in_features() * w.taps(),
          .in_padded = w.in_padded(),
          .out = w.out_features(),
          .type = type,
          .matrix = w.matrix()};
}

}  // namespace

void CudaBackend::RunLinear(cuda::LinearProblem p) {
  const int64_t out_padded = CeilDiv(p.out, cuda::kOutMultiple) * cuda::kOutMultiple;
  const size_t row_bytes = static_cast<size_t>(p.in_padded) * SizeOf(dtype()) +
                           static_cast<size_t>(out_padded) * sizeof(float);
  int64_t most = cuda::LibraryGemm::kMostBucket;
  while (most > 1 && Carve::Padded(most * row_bytes) + 512 > scratch_->size_bytes()) most /= 2;
  // Few rows are bound by the weight's bytes: no library does better than to read them once.
  if (library_ == nullptr || p.rows < cuda::LibraryGemm::kLeastBucket ||
      most < cuda::LibraryGemm::kLeastBucket) {
    cuda::Linear(p, queue_);
    return;
  }
  const auto advance = [](auto& rows, int64_t n) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(rows.data)>>,
                                    const std::byte, std::byte>;
    rows.data = static_cast<Byte*>(rows.data) +
                n * rows.stride * (rows.type == cuda::Type::kFloat32 ? 4 : 2);
  };
  for (int64_t left = p.rows; left > 0; left -= p.rows) {
    p.rows = std::min(most, left);
    const int64_t bucket = cuda::LibraryGemm::BucketFor(p.rows);
    Carve scratch(scratch_->data());
    auto* sums = scratch.Take<float>(bucket * out_padded);
    auto* padded =
        scratch.Take<std::byte>(bucket * p.in_padded * static_cast<int64_t>(SizeOf(dtype())));
    cuda::PadRows({padded, p.in_padded, type()}, p.x, p.rows, p.in, bucket, p.in_padded, queue_);
    library_->Run(sums, padded, p.matrix.weight, type(), bucket, p.in_padded, out_padded);
    cuda::FinishLinear(p, {sums, out_padded, cuda::Type::kFloat32}, queue_);
    advance(p.x, p.rows);
    advance(p.y, p.rows);
  }
}

void CudaBackend::DoLinear(TensorView y, ConstTensorView x, const LinearWeight& w,
                           Activation activation, bool add) {
  Op("Linear", [&] {
    const CudaLinear& packed = Packed(w);
    CHECK_EQ(packed.taps(), 1);
    cuda::LinearProblem p = ProblemOf(packed, type());
    p.y = RowsOf(y);
    p.x = RowsOf(x);
    p.rows = x.rows();
    p.activation = ActivationOf(activation);
    p.add = add;
    RunLinear(p);
  });
}

void CudaBackend::DoSiluMul(TensorView y, ConstTensorView up, ConstTensorView gate) {
  Op("SiluMul",
     [&] { cuda::SiluMul(RowsOf(y), RowsOf(up), RowsOf(gate), y.rows(), y.dim(1), queue_); });
}

bool CudaBackend::RunLibraryConv(TensorView y, ConstTensorView x, const CudaLinear& w, int64_t seqs,
                                 const cuda::Conv1dShape& shape, Activation activation) {
  if (convolutions_ == nullptr) return false;
  const int64_t out = w.out_features(), window = shape.kernel * shape.in;
  const auto element = static_cast<int64_t>(SizeOf(dtype()));
  // What the library cannot read where it lies is copied: rows of another type or at an odd
  // address, and a weight that is padded.
  const bool copy_x = x.dtype() != dtype() || reinterpret_cast<uintptr_t>(x.bytes()) % 16 != 0;
  const bool copy_w = w.in_padded() != window;
  const size_t x_bytes = copy_x ? static_cast<size_t>(x.elements() * element) : 0;
  const size_t w_bytes = copy_w ? static_cast<size_t>(out * window * element) : 0;
  const size_t sums_bytes = static_cast<size_t>(y.elements()) * sizeof(float);
  if (Carve::Padded(x_bytes) + Carve::Padded(w_bytes) + Carve::Padded(sums_bytes) >
      scratch_->size_bytes()) {
    return false;
  }
  Carve scratch(scratch_->data());
  auto* x_copy = scratch.Take<std::byte>(static_cast<int64_t>(x_bytes));
  auto* w_copy = scratch.Take<std::byte>(static_cast<int64_t>(w_bytes));
  auto* sums = scratch.Take<std::byte>(static_cast<int64_t>(sums_bytes));
  const cuda::LibraryConvProblem p = {
      .x = copy_x ? cuda::ConstRows{x_copy, shape.in, type()} : RowsOf(x),
      .w = copy_w ? w_copy : w.matrix().weight,
      .sums = sums,
      .seqs = seqs,
      .out = out,
      .shape = shape,
      .type = type()};
  const cuda::Type* sums_type = convolutions_->SumsType(p);
  if (sums_type == nullptr) return false;
  if (copy_x) {
    cuda::ConvertRows({x_copy, shape.in, type()}, RowsOf(x), x.rows(), shape.in, queue_);
  }
  if (copy_w) {
    const auto row = static_cast<size_t>(window * element);
    const auto pitch = static_cast<size_t>(w.in_padded() * element);
    const void* from = w.matrix().weight;
    queue_.Do(
        [&] {
          CUDA_CHECK(cudaMemcpy2DAsync(w_copy, row, from, pitch, row, static_cast<size_t>(out),
                                       cudaMemcpyDeviceToDevice, queue_.stream()));
        },
        &cudaMemcpy2DAsync, w_copy, from, row, pitch, out);
  }
  convolutions_->Run(p);
  cuda::LinearProblem end = ProblemOf(w, type());
  end.y = RowsOf(y);
  end.rows = y.rows();
  end.activation = ActivationOf(activation);
  cuda::FinishLinear(end, {sums, out, *sums_type}, queue_);
  return true;
}

void CudaBackend::DoConv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs,
                           int64_t kernel, int64_t stride, Activation activation) {
  Op("Conv1d", [&] {
    const CudaLinear& packed = Packed(w);
    CHECK_EQ(packed.taps(), kernel);
    const int64_t frames = x.rows() / seqs;
    const cuda::Conv1dShape shape = {.frames = frames,
                                     .frames_out = (frames - 1) / stride + 1,
                                     .in = x.dim(1),
                                     .kernel = kernel,
                                     .stride = stride};
    if (RunLibraryConv(y, x, packed, seqs, shape, activation)) return;
    const size_t row_bytes = static_cast<size_t>(packed.in_padded()) * SizeOf(dtype());
    const auto most = static_cast<int64_t>(scratch_->size_bytes() / row_bytes);
    CHECK_GT(most, 0) << "a window of " << row_bytes << " bytes, scratch of "
                      << scratch_->size_bytes();
    cuda::LinearProblem p = ProblemOf(packed, type());
    p.activation = ActivationOf(activation);
    for (int64_t begin = 0; begin < y.rows(); begin += most) {
      const int64_t rows = std::min(most, y.rows() - begin);
      const cuda::Rows windows = {scratch_->data(), packed.in_padded(), type()};
      cuda::Conv1dWindows(windows, RowsOf(x), shape, begin, rows, queue_);
      p.y = RowsOf(y.Rows(begin, begin + rows));
      p.x = {windows.data, windows.stride, windows.type};
      p.rows = rows;
      cuda::Linear(p, queue_);
    }
  });
}

void CudaBackend::DoMoeRoute(TensorView ids, TensorView weights, ConstTensorView logits) {
  Op("MoeRoute", [&] {
    const cuda::Routing routing = {.ids = ids.as<int32_t>(),
                                   .ids_stride = ids.row_stride(),
                                   .weights = weights.as<float>(),
                                   .weights_stride = weights.row_stride(),
                                   .tokens = ids.rows(),
                                   .k = static_cast<int>(ids.dim(1)),
                                   .experts = static_cast<int>(logits.dim(1))};
    cuda::MoeRoute(routing, logits.as<const float>(), logits.row_stride(), queue_);
  });
}

void CudaBackend::DoAddMoe(TensorView y, ConstTensorView x, ConstTensorView ids,
                           ConstTensorView weights, std::span<const ExpertWeights> experts) {
  Op("AddMoe", [&] {
    const int64_t k = ids.dim(1), hidden = x.dim(1);
    if (k == 0) return;
    CHECK(!experts.empty());
    const int64_t ffn = experts[0].down->in_features();
    const auto groups = static_cast<int>(experts.size());
    matrices_.clear();  // up_gate of each expert, then down of each
    for (const ExpertWeights& e : experts) matrices_.push_back(Packed(*e.up_gate).matrix());
    for (const ExpertWeights& e : experts) {
      CHECK_EQ(e.down->in_features(), ffn);
      matrices_.push_back(Packed(*e.down).matrix());
    }

    // Scratch of n tokens: their order, then [n k, 2 ffn] float, [n k, ffn] storage, [n k, hidden]
    // float.
    const auto bytes = [&](int64_t n) {
      const auto pairs = static_cast<size_t>(n * k);
      return Carve::Padded((groups + 1) * 4) + 2 * Carve::Padded(pairs * 4) +
             Carve::Padded(pairs * 2 * ffn * 4) + Carve::Padded(pairs * ffn * SizeOf(dtype())) +
             Carve::Padded(pairs * hidden * 4);
    };
    int64_t most = x.rows();
    while (most > 1 && bytes(most) > scratch_->size_bytes()) most = (most + 1) / 2;
    CHECK_LE(bytes(most), scratch_->size_bytes()) << "for one token of a mixture";

    uploads_->Reserve(matrices_.size() * sizeof(cuda::LinearMatrix));
    const cuda::LinearMatrix* sent =
        uploads_->Put(std::span(std::as_const(matrices_)), experts.data());
    for (int64_t begin = 0; begin < x.rows(); begin += most) {
      const int64_t n = std::min(most, x.rows() - begin), pairs = n * k;
      const auto ids_rows = ids.Rows(begin, begin + n),
                 weight_rows = weights.Rows(begin, begin + n);
      const cuda::Routing routing = {
          .ids = const_cast<int32_t*>(ids_rows.as<const int32_t>()),  // only MoeRoute writes
          .ids_stride = ids.row_stride(),
          .weights = const_cast<float*>(weight_rows.as<const float>()),
          .weights_stride = weights.row_stride(),
          .tokens = n,
          .k = static_cast<int>(k),
          .experts = groups};
      Carve scratch(scratch_->data());
      cuda::PairOrder order;
      order.first_row = scratch.Take<int32_t>(groups + 1);
      order.token_of = scratch.Take<int32_t>(pairs);
      order.place_of = scratch.Take<int32_t>(pairs);
      auto* up_gate = scratch.Take<float>(pairs * 2 * ffn);
      auto* hidden_rows =
          scratch.Take<std::byte>(pairs * ffn * static_cast<int64_t>(SizeOf(dtype())));
      auto* out = scratch.Take<float>(pairs * hidden);
      cuda::SortPairs(order, routing, queue_);

      cuda::LinearProblem p = ProblemOf(Packed(*experts[0].up_gate), type());
      p.groups = groups;
      p.first_row = order.first_row;
      p.rows = n;  // an expert is chosen at most once by a token
      p.matrices = sent;
      p.x = RowsOf(x.Rows(begin, begin + n));
      p.x_rows = order.token_of;
      p.y = {up_gate, 2 * ffn, cuda::Type::kFloat32};
      cuda::Linear(p, queue_);
      cuda::SiluMul({hidden_rows, ffn, type()}, {up_gate, 2 * ffn, cuda::Type::kFloat32},
                    {up_gate + ffn, 2 * ffn, cuda::Type::kFloat32}, pairs, ffn, queue_);
      p = ProblemOf(Packed(*experts[0].down), type());
      p.groups = groups;
      p.first_row = order.first_row;
      p.rows = n;
      p.matrices = sent + groups;
      p.x = {hidden_rows, ffn, type()};
      p.y = {out, hidden, cuda::Type::kFloat32};
      cuda::Linear(p, queue_);
      cuda::AddExperts(y.Rows(begin, begin + n).as<float>(), y.row_stride(), out, order.place_of,
                       routing, hidden, queue_);
    }
  });
}

}  // namespace sensorium
