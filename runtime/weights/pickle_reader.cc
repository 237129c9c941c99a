#include "runtime/weights/pickle_reader.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/weights/pickle_vocabulary.h"
#include "runtime/weights/quoted.h"

namespace sensorium {

namespace {

// A tensor takes some 300 bytes of pickle, 18 values and 15 places in tuples and dicts. The largest
// published mixtures of experts have 50 thousand tensors over all their files.
constexpr size_t kMaxPickleBytes = 64 << 20;
constexpr size_t kMaxValues = 4'000'000;  // some 100 bytes each with all that refers to them

// Values live in one arena and refer to each other by index, never by owning: however deep they
// nest and whatever cycles they form, letting go of them is freeing a few vectors.
using Id = uint32_t;

struct None {};
struct Mark {};
struct List {};  // a state dict needs none of a list's items
struct Dict {
  uint32_t index;  // into Reader::dicts_
};
struct Tuple {
  uint32_t begin, size;  // Reader::items_[begin, begin + size)
};
struct Storage {
  const PickleGlobal* type;
  std::string_view key;
  int64_t elements;
};
struct Tensor {
  Id storage;
  int64_t offset;
  Tuple shape, strides;  // of the same size, integers >= 0
};
using Value = std::variant<None, Mark, List, bool, int64_t, std::string_view, const PickleGlobal*,
                           Tuple, Dict, Storage, Tensor>;

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& origin)
      : bytes_(bytes), origin_(origin) {}

  absl::StatusOr<std::vector<PickledTensor>> Run();

 private:
  using Entry = std::pair<Id, Id>;  // key, value

  template <typename... Parts>
  absl::Status Error(const Parts&... parts) const {
    return absl::InvalidArgumentError(
        absl::StrCat(origin_, ": pickle byte ", op_at_, ": ", parts...));
  }
  absl::Status TooMany() const { return Error("more than ", kMaxValues, " values"); }
  bool Has(uint64_t n) const { return n <= bytes_.size() - at_; }

  // The opcode's argument, a little-endian integer.
  template <typename T>
  absl::StatusOr<T> Read() {
    if (!Has(sizeof(T))) return Error("the pickle ends within an opcode");
    T v;
    std::memcpy(&v, bytes_.data() + at_, sizeof v);
    at_ += sizeof v;
    return v;
  }
  absl::StatusOr<std::string_view> ReadText(uint64_t length);
  absl::StatusOr<std::string_view> ReadLine();
  absl::StatusOr<int64_t> ReadLong1();

  template <typename T>
  const T* As(Id id) const {
    return std::get_if<T>(&values_[id]);
  }
  // Makes a value.
  absl::Status Push(Value value) {
    if (values_.size() >= kMaxValues) return TooMany();
    values_.push_back(value);
    return PushId(static_cast<Id>(values_.size() - 1));
  }
  absl::Status PushId(Id id) {
    if (stack_.size() >= kMaxValues) return TooMany();
    stack_.push_back(id);
    return absl::OkStatus();
  }
  // What the top of the stack is if it is a T; a mark hides what lies below it.
  template <typename T>
  const T* Top() const {
    return stack_.empty() ? nullptr : As<T>(stack_.back());
  }
  absl::StatusOr<Id> Pop() {
    if (stack_.empty() || Top<Mark>()) return Error("the stack is empty");
    const Id id = stack_.back();
    stack_.pop_back();
    return id;
  }
  absl::StatusOr<std::vector<Id>> PopToMark();
  absl::Status PushDict();
  absl::Status PushTuple(std::span<const Id> items);
  absl::Status PushTupleOf(size_t n);
  absl::Status PushGlobal(std::string_view module, std::string_view attribute);
  absl::Status PushStorage();
  absl::Status Reduce();
  absl::Status PushTensor(Tuple arguments);
  absl::Status Insert(std::span<const Id> keys_and_values);
  absl::Status Build();
  absl::Status Memoize(uint32_t index);
  absl::Status Recall(uint32_t index);
  absl::Status Step(uint8_t op);
  absl::StatusOr<PickledTensor> Finish(std::string_view name, Id value) const;

  const std::span<const std::byte> bytes_;  // string_views in values_ point here
  const std::string& origin_;
  uint64_t at_ = 0, op_at_ = 0;
  std::vector<Value> values_;
  std::vector<Id> stack_;
  std::vector<Id> items_;  // of all tuples
  std::vector<std::vector<Entry>> dicts_;
  size_t num_entries_ = 0;  // in all of dicts_
  std::unordered_map<uint32_t, Id> memo_;
};

absl::StatusOr<std::string_view> Reader::ReadText(uint64_t length) {
  if (!Has(length)) {
    return Error("a string of ", length, " bytes runs over the end of ", bytes_.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes_.data() + at_), length);
  at_ += length;
  return text;
}

absl::StatusOr<std::string_view> Reader::ReadLine() {
  const std::string_view rest(reinterpret_cast<const char*>(bytes_.data() + at_),
                              bytes_.size() - at_);
  const size_t length = rest.find('\n');
  if (length == rest.npos) return Error("a global's name does not end");
  at_ += length + 1;
  return rest.substr(0, length);
}

// Two's complement of 0 to 8 bytes; Python's own integers have no such bound.
absl::StatusOr<int64_t> Reader::ReadLong1() {
  ASSIGN_OR_RETURN(const uint8_t n, Read<uint8_t>());
  if (n > 8) return Error("LONG1 with an integer of ", int{n}, " bytes; the limit is 8");
  uint64_t bits = 0;
  for (int i = 0; i < n; ++i) {
    ASSIGN_OR_RETURN(const uint8_t byte, Read<uint8_t>());
    bits |= uint64_t{byte} << (8 * i);
  }
  if (n > 0 && n < 8 && (bits >> (8 * n - 1))) bits |= ~uint64_t{0} << (8 * n);
  return static_cast<int64_t>(bits);
}

// Everything above the last mark, which goes too.
absl::StatusOr<std::vector<Id>> Reader::PopToMark() {
  size_t i = stack_.size();
  while (i > 0 && !As<Mark>(stack_[i - 1])) --i;
  if (i == 0) return Error("there is no mark on the stack");
  std::vector<Id> items(stack_.begin() + i, stack_.end());
  stack_.resize(i - 1);
  return items;
}

absl::Status Reader::PushDict() {
  dicts_.emplace_back();
  return Push(Dict{static_cast<uint32_t>(dicts_.size() - 1)});
}

absl::Status Reader::PushTuple(std::span<const Id> items) {
  if (items.size() > kMaxValues - items_.size()) return TooMany();
  const Tuple tuple{static_cast<uint32_t>(items_.size()), static_cast<uint32_t>(items.size())};
  items_.insert(items_.end(), items.begin(), items.end());
  return Push(tuple);
}

absl::Status Reader::PushTupleOf(size_t n) {
  Id items[3] = {};
  for (size_t i = n; i-- > 0;) {
    ASSIGN_OR_RETURN(items[i], Pop());
  }
  return PushTuple({items, n});
}

absl::Status Reader::PushGlobal(std::string_view module, std::string_view attribute) {
  const std::string name =
      std::string(module.substr(0, 256)) + "." + std::string(attribute.substr(0, 256));
  for (const PickleGlobal& global : kPickleGlobals) {
    if (global.name == name) return Push(&global);
  }
  return Error("the global ", Quoted(name),
               " is none that a state dict of tensors needs; nothing was executed");
}

// BINPERSID: a storage, ('storage', torch.XStorage, key, location, elements).
absl::Status Reader::PushStorage() {
  ASSIGN_OR_RETURN(const Id id, Pop());
  const Tuple* tuple = As<Tuple>(id);
  if (!tuple || tuple->size != 5) return Error("a storage is not named by five values");
  const Id* items = &items_[tuple->begin];
  const auto* kind = As<std::string_view>(items[0]);
  const auto* type = As<const PickleGlobal*>(items[1]);
  const auto* key = As<std::string_view>(items[2]);
  const auto* elements = As<int64_t>(items[4]);
  if (!kind || *kind != "storage" || !type || (*type)->meaning != PickleMeaning::kStorage || !key ||
      !elements || *elements < 0) {
    return Error("a storage is named by values of the wrong kinds");
  }
  return Push(Storage{.type = *type, .key = *key, .elements = *elements});
}

absl::Status Reader::Reduce() {
  ASSIGN_OR_RETURN(const Id arguments_id, Pop());
  ASSIGN_OR_RETURN(const Id callee, Pop());
  const Tuple* arguments = As<Tuple>(arguments_id);
  const auto* global = As<const PickleGlobal*>(callee);
  if (!arguments || !global) return Error("REDUCE of something else than a known global");
  switch ((*global)->meaning) {
    case PickleMeaning::kOrderedDict:
      if (arguments->size != 0) return Error("REDUCE of an OrderedDict with arguments");
      return PushDict();
    case PickleMeaning::kTensor:
      return PushTensor(*arguments);
    case PickleMeaning::kParameter:  // (tensor, requires_grad, backward_hooks): the tensor
      if (arguments->size != 3 || !As<Tensor>(items_[arguments->begin])) {
        return Error("REDUCE of a parameter made of something else than a tensor");
      }
      return PushId(items_[arguments->begin]);
    case PickleMeaning::kStorage:
      break;
  }
  return Error("REDUCE of ", Quoted((*global)->name), ", which a state dict does not call");
}

// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks[, metadata])
absl::Status Reader::PushTensor(Tuple arguments) {
  if (arguments.size < 6 || arguments.size > 7) {
    return Error("a tensor is made of ", arguments.size, " values, expected 6 or 7");
  }
  const Id* items = &items_[arguments.begin];
  const auto* offset = As<int64_t>(items[1]);
  const auto *shape = As<Tuple>(items[2]), *strides = As<Tuple>(items[3]);
  if (!As<Storage>(items[0]) || !offset || *offset < 0 || !shape || !strides) {
    return Error("a tensor is made of values of the wrong kinds");
  }
  if (shape->size != strides->size || shape->size > static_cast<uint32_t>(kMaxRank)) {
    return Error("a tensor has ", shape->size, " axes and ", strides->size,
                 " strides; the limit is ", kMaxRank);
  }
  for (const Tuple* tuple : {shape, strides}) {
    for (uint32_t i = 0; i < tuple->size; ++i) {
      const auto* n = As<int64_t>(items_[tuple->begin + i]);
      if (!n || *n < 0) return Error("a tensor's shape or strides are no integers from 0 on");
    }
  }
  return Push(Tensor{.storage = items[0], .offset = *offset, .shape = *shape, .strides = *strides});
}

// SETITEM and SETITEMS on the dict on top of the stack.
absl::Status Reader::Insert(std::span<const Id> keys_and_values) {
  const Dict* dict = Top<Dict>();
  if (!dict) return Error("SETITEM on something else than a dict");
  if (keys_and_values.size() % 2 != 0) return Error("SETITEMS with a key of no value");
  num_entries_ += keys_and_values.size() / 2;
  if (num_entries_ > kMaxValues) return TooMany();
  for (size_t i = 0; i < keys_and_values.size(); i += 2) {
    dicts_[dict->index].emplace_back(keys_and_values[i], keys_and_values[i + 1]);
  }
  return absl::OkStatus();
}

// Attributes set on the state dict: torch's modules leave `_metadata` (nested dicts of versions)
// there. Not needed.
absl::Status Reader::Build() {
  ASSIGN_OR_RETURN(const Id state, Pop());
  if (!As<Dict>(state) || !Top<Dict>()) {
    return Error("BUILD of something else than a dict's attributes");
  }
  return absl::OkStatus();
}

absl::Status Reader::Memoize(uint32_t index) {
  if (stack_.empty() || Top<Mark>()) return Error("nothing to memoize");
  if (memo_.size() >= kMaxValues) return TooMany();
  memo_[index] = stack_.back();
  return absl::OkStatus();
}

absl::Status Reader::Recall(uint32_t index) {
  const auto it = memo_.find(index);
  if (it == memo_.end()) return Error("memo entry ", index, " is not set");
  return PushId(it->second);
}

// One opcode but STOP. Names: CPython, Lib/pickletools.py.
absl::Status Reader::Step(uint8_t op) {
  switch (op) {
    case 0x80: {  // PROTO
      ASSIGN_OR_RETURN(const uint8_t version, Read<uint8_t>());
      if (version >= 2 && version <= 5) return absl::OkStatus();
      return Error("pickle protocol ", int{version}, ", expected 2 to 5");
    }
    case 0x95:  // FRAME: a length that only a reader of streams wants
      return Read<uint64_t>().status();
    case '}':  // EMPTY_DICT
      return PushDict();
    case ']':  // EMPTY_LIST
      return Push(List{});
    case ')':  // EMPTY_TUPLE
      return PushTuple({});
    case '(':  // MARK
      return Push(Mark{});
    case 'N':  // NONE
      return Push(None{});
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      return Push(op == 0x88);
    case 'X': {  // BINUNICODE
      ASSIGN_OR_RETURN(const uint32_t length, Read<uint32_t>());
      ASSIGN_OR_RETURN(const std::string_view text, ReadText(length));
      return Push(text);
    }
    case 0x8c: {  // SHORT_BINUNICODE
      ASSIGN_OR_RETURN(const uint8_t length, Read<uint8_t>());
      ASSIGN_OR_RETURN(const std::string_view text, ReadText(length));
      return Push(text);
    }
    case 'J': {  // BININT
      ASSIGN_OR_RETURN(const int32_t n, Read<int32_t>());
      return Push(int64_t{n});
    }
    case 'K': {  // BININT1
      ASSIGN_OR_RETURN(const uint8_t n, Read<uint8_t>());
      return Push(int64_t{n});
    }
    case 'M': {  // BININT2
      ASSIGN_OR_RETURN(const uint16_t n, Read<uint16_t>());
      return Push(int64_t{n});
    }
    case 0x8a: {  // LONG1
      ASSIGN_OR_RETURN(const int64_t n, ReadLong1());
      return Push(n);
    }
    case 't': {  // TUPLE
      ASSIGN_OR_RETURN(const std::vector<Id> items, PopToMark());
      return PushTuple(items);
    }
    case 0x85:  // TUPLE1
    case 0x86:  // TUPLE2
    case 0x87:  // TUPLE3
      return PushTupleOf(op - 0x84);
    case 'a':    // APPEND
    case 'e': {  // APPENDS
      RETURN_IF_ERROR(op == 'a' ? Pop().status() : PopToMark().status());
      return Top<List>() ? absl::OkStatus() : Error("APPEND to something else than a list");
    }
    case 's': {  // SETITEM
      ASSIGN_OR_RETURN(const Id value, Pop());
      ASSIGN_OR_RETURN(const Id key, Pop());
      return Insert(std::initializer_list<Id>{key, value});
    }
    case 'u': {  // SETITEMS
      ASSIGN_OR_RETURN(const std::vector<Id> items, PopToMark());
      return Insert(items);
    }
    case 'q': {  // BINPUT
      ASSIGN_OR_RETURN(const uint8_t index, Read<uint8_t>());
      return Memoize(index);
    }
    case 'r': {  // LONG_BINPUT
      ASSIGN_OR_RETURN(const uint32_t index, Read<uint32_t>());
      return Memoize(index);
    }
    case 0x94:  // MEMOIZE
      return Memoize(static_cast<uint32_t>(memo_.size()));
    case 'h': {  // BINGET
      ASSIGN_OR_RETURN(const uint8_t index, Read<uint8_t>());
      return Recall(index);
    }
    case 'j': {  // LONG_BINGET
      ASSIGN_OR_RETURN(const uint32_t index, Read<uint32_t>());
      return Recall(index);
    }
    case 'c': {  // GLOBAL
      ASSIGN_OR_RETURN(const std::string_view module, ReadLine());
      ASSIGN_OR_RETURN(const std::string_view attribute, ReadLine());
      return PushGlobal(module, attribute);
    }
    case 0x93: {  // STACK_GLOBAL
      ASSIGN_OR_RETURN(const Id attribute, Pop());
      ASSIGN_OR_RETURN(const Id module, Pop());
      const auto *m = As<std::string_view>(module), *a = As<std::string_view>(attribute);
      return m && a ? PushGlobal(*m, *a) : Error("STACK_GLOBAL of something else than two names");
    }
    case 'Q':  // BINPERSID
      return PushStorage();
    case 'R':  // REDUCE
      return Reduce();
    case 'b':  // BUILD
      return Build();
    default:
      return Error("the opcode ", std::string(NameOfRefusedOpcode(op)), " (0x",
                   absl::Hex(op, absl::kZeroPad2),
                   ") is none that a state dict of tensors needs; nothing was executed");
  }
}

// An entry of the state dict.
absl::StatusOr<PickledTensor> Reader::Finish(std::string_view name, Id value) const {
  const Tensor* tensor = As<Tensor>(value);
  if (!tensor) return Error("entry ", Quoted(name), " is no tensor: this is no plain state dict");
  const Storage& storage = std::get<Storage>(values_[tensor->storage]);
  if (!storage.type->dtype) {
    return Error("tensor ", Quoted(name), " is stored as ", std::string(storage.type->name),
                 ", expected torch.FloatStorage, torch.HalfStorage or torch.BFloat16Storage");
  }
  const auto integers = [&](Tuple tuple) {
    std::vector<int64_t> n;
    for (uint32_t i = 0; i < tuple.size; ++i) {
      n.push_back(std::get<int64_t>(values_[items_[tuple.begin + i]]));
    }
    return n;
  };
  return PickledTensor{.name = std::string(name),
                       .dtype = *storage.type->dtype,
                       .storage = std::string(storage.key),
                       .storage_elements = storage.elements,
                       .offset = tensor->offset,
                       .shape = integers(tensor->shape),
                       .strides = integers(tensor->strides)};
}

absl::StatusOr<std::vector<PickledTensor>> Reader::Run() {
  if (bytes_.size() > kMaxPickleBytes) {
    return Error("the pickle has ", bytes_.size(), " bytes; the limit is ", kMaxPickleBytes);
  }
  while (true) {
    op_at_ = at_;
    if (!Has(1)) return Error("the pickle does not end with STOP");
    const uint8_t op = static_cast<uint8_t>(bytes_[at_++]);
    if (op == '.') break;
    RETURN_IF_ERROR(Step(op));
  }
  const Dict* dict = Top<Dict>();
  if (!dict || stack_.size() != 1) return Error("the pickle holds something else than one dict");
  std::vector<PickledTensor> tensors;
  std::set<std::string_view> names;
  for (const auto& [key, value] : dicts_[dict->index]) {
    const auto* name = As<std::string_view>(key);
    if (!name) return Error("a key of the state dict is no string");
    if (!names.insert(*name).second) return Error("the name ", Quoted(*name), " appears twice");
    ASSIGN_OR_RETURN(PickledTensor tensor, Finish(*name, value));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadStateDictPickle(std::span<const std::byte> pickle,
                                                               const std::string& origin) {
  return Reader(pickle, origin).Run();
}

}  // namespace sensorium
