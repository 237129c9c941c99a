#include "runtime/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace sensorium {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's own limit
constexpr int kMaxDepth = 8;                       // a valid header nests three deep

// Parses into a DOM, refusing deep nesting and repeated keys (which a DOM would hide).
class HeaderSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderSax(nlohmann::json& root) : dom_(root, /*allow_exceptions=*/false) {}
  std::string error;

  bool null() override { return dom_.null(); }
  bool boolean(bool v) override { return dom_.boolean(v); }
  bool number_integer(number_integer_t v) override { return dom_.number_integer(v); }
  bool number_unsigned(number_unsigned_t v) override { return dom_.number_unsigned(v); }
  bool number_float(number_float_t v, const string_t& s) override { return dom_.number_float(v, s); }
  bool string(string_t& v) override { return dom_.string(v); }
  bool binary(binary_t& v) override { return dom_.binary(v); }
  bool start_object(std::size_t n) override {
    keys_.emplace_back();
    return Enter() && dom_.start_object(n);
  }
  bool key(string_t& k) override {
    if (!keys_.back().insert(k).second) {
      error = absl::StrCat("the name '", k, "' appears twice");
      return false;
    }
    return dom_.key(k);
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return dom_.end_object();
  }
  bool start_array(std::size_t n) override { return Enter() && dom_.start_array(n); }
  bool end_array() override {
    --depth_;
    return dom_.end_array();
  }
  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::detail::exception&) override {
    error = absl::StrCat("not valid JSON at byte ", at);
    return false;
  }

 private:
  bool Enter() {
    if (++depth_ <= kMaxDepth) return true;
    error = absl::StrCat("nested deeper than ", kMaxDepth);
    return false;
  }
  nlohmann::detail::json_sax_dom_parser<nlohmann::json> dom_;
  std::vector<std::set<std::string>> keys_;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensors(const MappedFile& file) {
  const auto error = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", parts...));
  };
  const std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < 8) return error("the file has ", bytes.size(), " bytes, a header needs 8");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8) {
    return error("the header claims ", header_bytes, " bytes; the file has ", bytes.size() - 8,
                 " behind its length and the limit is ", kMaxHeaderBytes);
  }
  nlohmann::json header;
  HeaderSax sax(header);
  const char* text = reinterpret_cast<const char*>(bytes.data() + 8);
  if (!nlohmann::json::sax_parse(text, text + header_bytes, &sax) || !header.is_object()) {
    return error("bad header: ", sax.error.empty() ? "not a JSON object" : sax.error);
  }
  const std::byte* data = bytes.data() + 8 + header_bytes;
  const uint64_t data_bytes = bytes.size() - 8 - header_bytes;

  struct Extent {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  std::vector<TensorInfo> tensors;
  tensors.reserve(header.size());
  extents.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
        !entry.contains("shape") || !entry["shape"].is_array() ||
        !entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
        entry["data_offsets"].size() != 2) {
      return error("tensor '", name, "' lacks dtype, shape or data_offsets");
    }
    TensorInfo tensor{.name = name,
                      .file = file.path(),
                      .dtype = DType::kFloat32,
                      .shape = {},
                      .data = nullptr,
                      .bytes = 0};
    const std::string& dtype = entry["dtype"].get_ref<const std::string&>();
    uint64_t element = 0;
    if (dtype == "F32") {
      tensor.dtype = DType::kFloat32, element = 4;
    } else if (dtype == "BF16") {
      tensor.dtype = DType::kBFloat16, element = 2;
    } else if (dtype == "F16") {
      tensor.dtype = DType::kFloat16, element = 2;
    } else {
      return error("tensor '", name, "' has dtype ", dtype, ", expected F32, F16 or BF16");
    }
    uint64_t size = element;
    if (entry["shape"].size() > kMaxRank) {
      return error("tensor '", name, "' has ", entry["shape"].size(), " axes, the limit is ",
                   kMaxRank);
    }
    for (const auto& dim : entry["shape"]) {
      if (!dim.is_number_unsigned() || dim.get<uint64_t>() > INT64_MAX ||
          __builtin_mul_overflow(size, dim.get<uint64_t>(), &size)) {
        return error("tensor '", name, "' has an impossible shape ", entry["shape"].dump());
      }
      tensor.shape.push_back(dim.get<int64_t>());
    }
    const auto& offsets = entry["data_offsets"];
    if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
      return error("tensor '", name, "' has offsets ", offsets.dump());
    }
    const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
    if (begin > end || end > data_bytes) {
      return error("tensor '", name, "' lies at bytes ", begin, " to ", end, " of ", data_bytes);
    }
    if (end - begin != size) {
      return error("tensor '", name, "' of shape ", ShapeText(tensor.shape), " and ", dtype,
                   " takes ", size, " bytes, its offsets give ", end - begin);
    }
    tensor.data = data + begin;
    tensor.bytes = size;
    tensors.push_back(std::move(tensor));
    extents.push_back({begin, end, nullptr});
  }
  for (size_t i = 0; i < tensors.size(); ++i) extents[i].name = &tensors[i].name;
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Extent& e : extents) {
    if (e.begin < covered) return error("tensor '", *e.name, "' overlaps the one before it");
    if (e.begin > covered) {
      return error("bytes ", covered, " to ", e.begin, " belong to no tensor");
    }
    covered = e.end;
  }
  if (covered != data_bytes) {
    return error("the tensors end at byte ", covered, " of ", data_bytes);
  }
  return tensors;
}

}  // namespace sensorium
