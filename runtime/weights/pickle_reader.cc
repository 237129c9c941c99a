#include "runtime/weights/pickle_reader.h"

#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string_view>
#include <unordered_map>
#include <variant>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace sensorium {

namespace {

constexpr size_t kMaxStack = 4'000'000;    // values alive at once: a 72B checkpoint has thousands
constexpr size_t kMaxValues = 16'000'000;  // ever made

struct Value;
// Shared, since the memo lets one value stand in several places. Containers only ever hold values
// that were complete before them, so there are no cycles but a dict put into itself, which Insert
// refuses.
using Ref = std::shared_ptr<Value>;

struct None {};
struct Mark {};
struct Global {
  std::string name;  // module.attribute
};
struct Storage {
  DType dtype;
  std::string key;
  int64_t elements;
};
struct Tuple {
  std::vector<Ref> items;
};
struct List {
  std::vector<Ref> items;
};
struct Dict {
  std::vector<std::pair<Ref, Ref>> items;
};

struct Value {
  std::variant<None, Mark, bool, int64_t, std::string, Global, Storage, Tuple, List, Dict,
               PickledTensor>
      v;
};

template <typename T>
T* As(const Ref& ref) {
  return ref ? std::get_if<T>(&ref->v) : nullptr;
}

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& origin)
      : bytes_(bytes), origin_(origin) {}

  absl::StatusOr<std::vector<PickledTensor>> Run();

 private:
  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(origin_, ": pickle byte ", op_at_, ": ", std::string(what)));
  }
  bool Has(uint64_t n) const { return n <= bytes_.size() - at_; }
  template <typename T>
  T Read() {
    T v;
    std::memcpy(&v, bytes_.data() + at_, sizeof v);
    at_ += sizeof v;
    return v;
  }
  bool Push(Value value) {
    if (stack_.size() >= kMaxStack || ++made_ > kMaxValues) return false;
    stack_.push_back(std::make_shared<Value>(std::move(value)));
    return true;
  }
  Ref Pop() {
    if (stack_.empty()) return nullptr;
    Ref top = std::move(stack_.back());
    stack_.pop_back();
    return top;
  }
  // Everything above the last mark, which goes too.
  bool PopToMark(std::vector<Ref>& items) {
    size_t i = stack_.size();
    while (i > 0 && !As<Mark>(stack_[i - 1])) --i;
    if (i == 0) return false;
    items.assign(std::make_move_iterator(stack_.begin() + i),
                 std::make_move_iterator(stack_.end()));
    stack_.resize(i - 1);
    return true;
  }
  absl::Status Text(uint64_t length);
  absl::Status Line(std::string& line);
  absl::Status TupleOf(size_t n);
  absl::Status PushGlobal(std::string name);
  absl::Status Reduce();
  absl::Status PersistentId();
  absl::Status Insert(const Ref& dict, const Ref& key, const Ref& value);
  absl::Status Build();
  absl::Status Step(uint8_t op, bool& stop);

  const std::span<const std::byte> bytes_;
  const std::string& origin_;
  uint64_t at_ = 0, op_at_ = 0;
  size_t made_ = 0;
  std::vector<Ref> stack_;
  std::unordered_map<uint32_t, Ref> memo_;
};

absl::Status Reader::Text(uint64_t length) {
  if (!Has(length)) return Error(absl::StrCat("a string of ", length, " bytes runs over the end"));
  std::string text(reinterpret_cast<const char*>(bytes_.data() + at_), length);
  at_ += length;
  return Push({std::move(text)}) ? absl::OkStatus() : Error("too many values");
}

absl::Status Reader::Line(std::string& line) {
  while (Has(1)) {
    const char c = static_cast<char>(bytes_[at_++]);
    if (c == '\n') return absl::OkStatus();
    line.push_back(c);
    if (line.size() > 256) break;
  }
  return Error("a global's name does not end");
}

absl::Status Reader::TupleOf(size_t n) {
  if (stack_.size() < n) return Error("the stack is empty");
  Tuple tuple;
  for (size_t i = stack_.size() - n; i < stack_.size(); ++i) {
    if (As<Mark>(stack_[i])) return Error("a mark in a tuple");
    tuple.items.push_back(stack_[i]);
  }
  stack_.resize(stack_.size() - n);
  return Push({std::move(tuple)}) ? absl::OkStatus() : Error("too many values");
}

absl::Status Reader::PushGlobal(std::string name) {
  static const std::set<std::string, std::less<>> kKnown = {"collections.OrderedDict",
                                                            "torch._utils._rebuild_tensor_v2",
                                                            "torch._utils._rebuild_parameter",
                                                            "torch.FloatStorage",
                                                            "torch.HalfStorage",
                                                            "torch.BFloat16Storage"};
  if (!kKnown.contains(name)) {
    return Error(
        absl::StrCat("the global '", absl::CEscape(name.substr(0, 200)),
                     "' is none a state dict of float tensors needs; nothing was executed"));
  }
  return Push({Global{std::move(name)}}) ? absl::OkStatus() : Error("too many values");
}

// A storage: ('storage', torch.XStorage, key, location, elements).
absl::Status Reader::PersistentId() {
  const Ref id = Pop();
  const Tuple* tuple = As<Tuple>(id);
  if (!tuple || tuple->items.size() != 5) return Error("a storage is not named by five values");
  const auto* kind = As<std::string>(tuple->items[0]);
  const auto* type = As<Global>(tuple->items[1]);
  const auto* key = As<std::string>(tuple->items[2]);
  const auto* elements = As<int64_t>(tuple->items[4]);
  if (!kind || *kind != "storage" || !type || !key || !elements || *elements < 0) {
    return Error("a storage is named by values of the wrong kinds");
  }
  Storage storage{.dtype = DType::kFloat32, .key = *key, .elements = *elements};
  if (type->name == "torch.HalfStorage") {
    storage.dtype = DType::kFloat16;
  } else if (type->name == "torch.BFloat16Storage") {
    storage.dtype = DType::kBFloat16;
  } else if (type->name != "torch.FloatStorage") {
    return Error(absl::StrCat("a storage of type ", type->name));
  }
  return Push({std::move(storage)}) ? absl::OkStatus() : Error("too many values");
}

absl::Status Reader::Reduce() {
  const Ref arguments = Pop(), callee = Pop();
  const Tuple* args = As<Tuple>(arguments);
  const Global* global = As<Global>(callee);
  if (!args || !global) return Error("REDUCE of something else than a known global");
  const auto& items = args->items;
  if (global->name == "collections.OrderedDict") {
    if (!items.empty()) return Error("an OrderedDict made with arguments");
    return Push({Dict{}}) ? absl::OkStatus() : Error("too many values");
  }
  if (global->name == "torch._utils._rebuild_parameter") {
    // (tensor, requires_grad, backward_hooks): the tensor.
    if (items.size() != 3 || !As<PickledTensor>(items[0])) return Error("a bad parameter");
    stack_.push_back(items[0]);
    return absl::OkStatus();
  }
  if (global->name != "torch._utils._rebuild_tensor_v2") {
    return Error(absl::StrCat("a call of ", global->name));
  }
  // (storage, offset, size, stride, requires_grad, backward_hooks[, metadata])
  if (items.size() < 6 || items.size() > 7) return Error("a tensor is not made of six values");
  const auto* storage = As<Storage>(items[0]);
  const auto* offset = As<int64_t>(items[1]);
  const auto* shape = As<Tuple>(items[2]);
  const auto* strides = As<Tuple>(items[3]);
  if (!storage || !offset || *offset < 0 || !shape || !strides ||
      shape->items.size() != strides->items.size() ||
      shape->items.size() > static_cast<size_t>(kMaxRank)) {
    return Error("a tensor is made of values of the wrong kinds");
  }
  PickledTensor tensor{.name = "",
                       .dtype = storage->dtype,
                       .storage = storage->key,
                       .storage_elements = storage->elements,
                       .offset = *offset,
                       .shape = {},
                       .strides = {}};
  for (size_t i = 0; i < shape->items.size(); ++i) {
    const auto* n = As<int64_t>(shape->items[i]);
    const auto* s = As<int64_t>(strides->items[i]);
    if (!n || *n < 0 || !s || *s < 0) return Error("a tensor has a bad shape or stride");
    tensor.shape.push_back(*n);
    tensor.strides.push_back(*s);
  }
  return Push({std::move(tensor)}) ? absl::OkStatus() : Error("too many values");
}

absl::Status Reader::Insert(const Ref& dict, const Ref& key, const Ref& value) {
  Dict* d = As<Dict>(dict);
  if (!d) return Error("SETITEM on something else than a dict");
  // A flat state dict: no container goes into one but empty hooks and small metadata.
  if (!As<std::string>(key)) return Error("a dict's key is not a string");
  if (value == dict || As<Mark>(value)) return Error("a dict inside itself");
  if (As<Dict>(value) && !As<Dict>(value)->items.empty()) {
    return Error(absl::StrCat("entry '", absl::CEscape(*As<std::string>(key)),
                              "' is a dict, not a tensor: this is no plain state dict"));
  }
  d->items.emplace_back(key, value);
  return absl::OkStatus();
}

// State set on the state dict itself: torch stores `_metadata` so. Dropped.
absl::Status Reader::Build() {
  const Ref state = Pop();
  if (!state || stack_.empty() || !As<Dict>(stack_.back())) {
    return Error("BUILD on something else than a dict");
  }
  return absl::OkStatus();
}

absl::Status Reader::Step(uint8_t op, bool& stop) {
  const auto push = [&](Value v) {
    return Push(std::move(v)) ? absl::OkStatus() : Error("too many values");
  };
  const auto need = [&](uint64_t n) {
    return Has(n) ? absl::OkStatus() : Error("the pickle ends within an opcode");
  };
  const auto memoize = [&](uint32_t index) {
    if (stack_.empty() || As<Mark>(stack_.back())) return Error("nothing to memoize");
    memo_[index] = stack_.back();
    return absl::OkStatus();
  };
  const auto recall = [&](uint32_t index) {
    const auto it = memo_.find(index);
    if (it == memo_.end()) return Error(absl::StrCat("memo entry ", index, " is not set"));
    if (stack_.size() >= kMaxStack) return Error("too many values");
    stack_.push_back(it->second);
    return absl::OkStatus();
  };
  // One-byte arguments first read their byte.
  absl::Status status;
  switch (op) {
    case 0x80:  // PROTO
      if (status = need(1); !status.ok()) return status;
      if (const uint8_t version = Read<uint8_t>(); version < 2 || version > 5) {
        return Error(absl::StrCat("pickle protocol ", int{version}, ", expected 2 to 5"));
      }
      return absl::OkStatus();
    case 0x95:  // FRAME: a length that a stream reader wants
      if (status = need(8); !status.ok()) return status;
      Read<uint64_t>();
      return absl::OkStatus();
    case '}':
      return push({Dict{}});
    case ']':
      return push({List{}});
    case ')':
      return push({Tuple{}});
    case '(':
      return push({Mark{}});
    case 'N':
      return push({None{}});
    case 0x88:
      return push({true});
    case 0x89:
      return push({false});
    case 'X':  // BINUNICODE
      if (status = need(4); !status.ok()) return status;
      return Text(Read<uint32_t>());
    case 0x8c:  // SHORT_BINUNICODE
      if (status = need(1); !status.ok()) return status;
      return Text(Read<uint8_t>());
    case 'J':  // BININT
      if (status = need(4); !status.ok()) return status;
      return push({int64_t{Read<int32_t>()}});
    case 'K':  // BININT1
      if (status = need(1); !status.ok()) return status;
      return push({int64_t{Read<uint8_t>()}});
    case 'M':  // BININT2
      if (status = need(2); !status.ok()) return status;
      return push({int64_t{Read<uint16_t>()}});
    case 0x8a: {  // LONG1: little-endian two's complement
      if (status = need(1); !status.ok()) return status;
      const uint8_t n = Read<uint8_t>();
      if (n > 8) return Error(absl::StrCat("an integer of ", int{n}, " bytes"));
      if (status = need(n); !status.ok()) return status;
      uint64_t bits = 0;
      for (uint8_t i = 0; i < n; ++i) bits |= uint64_t{Read<uint8_t>()} << (8 * i);
      if (n > 0 && n < 8 && (bits >> (8 * n - 1))) bits |= ~uint64_t{0} << (8 * n);
      return push({static_cast<int64_t>(bits)});
    }
    case 't': {  // TUPLE
      Tuple tuple;
      if (!PopToMark(tuple.items)) return Error("TUPLE without a mark");
      return push({std::move(tuple)});
    }
    case 0x85:
      return TupleOf(1);
    case 0x86:
      return TupleOf(2);
    case 0x87:
      return TupleOf(3);
    case 'a': {  // APPEND
      const Ref item = Pop();
      if (!item || stack_.empty() || !As<List>(stack_.back())) return Error("APPEND to no list");
      if (item == stack_.back()) return Error("a list inside itself");
      As<List>(stack_.back())->items.push_back(item);
      return absl::OkStatus();
    }
    case 'e': {  // APPENDS
      std::vector<Ref> items;
      if (!PopToMark(items) || stack_.empty() || !As<List>(stack_.back())) {
        return Error("APPENDS to no list");
      }
      for (Ref& item : items) {
        if (item == stack_.back()) return Error("a list inside itself");
        As<List>(stack_.back())->items.push_back(std::move(item));
      }
      return absl::OkStatus();
    }
    case 's': {  // SETITEM
      const Ref value = Pop(), key = Pop();
      if (!value || !key || stack_.empty()) return Error("SETITEM on an empty stack");
      return Insert(stack_.back(), key, value);
    }
    case 'u': {  // SETITEMS
      std::vector<Ref> items;
      if (!PopToMark(items) || stack_.empty() || items.size() % 2 != 0) {
        return Error("SETITEMS without pairs");
      }
      for (size_t i = 0; i < items.size(); i += 2) {
        if (status = Insert(stack_.back(), items[i], items[i + 1]); !status.ok()) return status;
      }
      return absl::OkStatus();
    }
    case 'q':  // BINPUT
      if (status = need(1); !status.ok()) return status;
      return memoize(Read<uint8_t>());
    case 'r':  // LONG_BINPUT
      if (status = need(4); !status.ok()) return status;
      return memoize(Read<uint32_t>());
    case 0x94:
      return memoize(static_cast<uint32_t>(memo_.size()));  // MEMOIZE
    case 'h':                                               // BINGET
      if (status = need(1); !status.ok()) return status;
      return recall(Read<uint8_t>());
    case 'j':  // LONG_BINGET
      if (status = need(4); !status.ok()) return status;
      return recall(Read<uint32_t>());
    case 'c': {  // GLOBAL
      std::string module, name;
      if (status = Line(module); !status.ok()) return status;
      if (status = Line(name); !status.ok()) return status;
      return PushGlobal(module + "." + name);
    }
    case 0x93: {  // STACK_GLOBAL
      const Ref name = Pop(), module = Pop();
      if (!As<std::string>(name) || !As<std::string>(module)) return Error("a global of no name");
      return PushGlobal(*As<std::string>(module) + "." + *As<std::string>(name));
    }
    case 'Q':
      return PersistentId();
    case 'R':
      return Reduce();
    case 'b':
      return Build();
    case '.':
      stop = true;
      return absl::OkStatus();
    default:
      return Error(absl::StrCat("opcode 0x", absl::Hex(op, absl::kZeroPad2),
                                " is none a state dict needs; nothing was executed"));
  }
}

absl::StatusOr<std::vector<PickledTensor>> Reader::Run() {
  bool stop = false;
  while (!stop) {
    if (!Has(1)) return Error("the pickle has no end");
    op_at_ = at_;
    if (absl::Status status = Step(Read<uint8_t>(), stop); !status.ok()) return status;
  }
  const Ref root = Pop();
  const Dict* dict = As<Dict>(root);
  if (!dict || !stack_.empty()) return Error("the pickle is no dict of tensors");
  std::vector<PickledTensor> tensors;
  std::set<std::string> names;
  for (const auto& [key, value] : dict->items) {
    const std::string& name = *As<std::string>(key);
    const PickledTensor* tensor = As<PickledTensor>(value);
    if (!tensor) return Error(absl::StrCat("entry '", absl::CEscape(name), "' is no tensor"));
    if (!names.insert(name).second) {
      return Error(absl::StrCat("the name '", absl::CEscape(name), "' appears twice"));
    }
    tensors.push_back(*tensor);
    tensors.back().name = name;
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadStateDictPickle(std::span<const std::byte> pickle,
                                                               const std::string& origin) {
  return Reader(pickle, origin).Run();
}

}  // namespace sensorium
