// What of the pickle language a state dict of tensors speaks, and the names of what it does not.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "runtime/backend/tensor.h"

namespace sensorium {

// The globals that a state dict of tensors names, as "module.attribute". Nothing is looked up or
// called: the name stands for one of these meanings.
enum class PickleMeaning { kOrderedDict, kTensor, kParameter, kStorage };
struct PickleGlobal {
  std::string_view name;
  PickleMeaning meaning;
  std::optional<DType> dtype = {};  // of a storage; none: a kind that no model of ours holds
};
inline constexpr PickleGlobal kPickleGlobals[] = {
    {"collections.OrderedDict", PickleMeaning::kOrderedDict},
    {"torch._utils._rebuild_tensor_v2", PickleMeaning::kTensor},
    {"torch._utils._rebuild_parameter", PickleMeaning::kParameter},
    {"torch.FloatStorage", PickleMeaning::kStorage, DType::kFloat32},
    {"torch.HalfStorage", PickleMeaning::kStorage, DType::kFloat16},
    {"torch.BFloat16Storage", PickleMeaning::kStorage, DType::kBFloat16},
    {"torch.DoubleStorage", PickleMeaning::kStorage},
    {"torch.LongStorage", PickleMeaning::kStorage},
    {"torch.IntStorage", PickleMeaning::kStorage},
    {"torch.ShortStorage", PickleMeaning::kStorage},
    {"torch.CharStorage", PickleMeaning::kStorage},
    {"torch.ByteStorage", PickleMeaning::kStorage},
    {"torch.BoolStorage", PickleMeaning::kStorage},
};

// The opcodes of pickletools that a state dict does not need, for messages.
inline std::string_view NameOfRefusedOpcode(uint8_t op) {
  // clang-format off
  static constexpr std::pair<uint8_t, std::string_view> kNames[] = {
      {'0', "POP"}, {'1', "POP_MARK"}, {'2', "DUP"}, {'F', "FLOAT"}, {'G', "BINFLOAT"},
      {'I', "INT"}, {'L', "LONG"}, {'P', "PERSID"}, {'S', "STRING"}, {'T', "BINSTRING"},
      {'U', "SHORT_BINSTRING"}, {'V', "UNICODE"}, {'B', "BINBYTES"}, {'C', "SHORT_BINBYTES"},
      {'d', "DICT"}, {'g', "GET"}, {'p', "PUT"}, {'i', "INST"}, {'o', "OBJ"}, {'l', "LIST"},
      {0x81, "NEWOBJ"}, {0x82, "EXT1"}, {0x83, "EXT2"}, {0x84, "EXT4"}, {0x8b, "LONG4"},
      {0x8d, "BINUNICODE8"}, {0x8e, "BINBYTES8"}, {0x8f, "EMPTY_SET"}, {0x90, "ADDITEMS"},
      {0x91, "FROZENSET"}, {0x92, "NEWOBJ_EX"}, {0x96, "BYTEARRAY8"}, {0x97, "NEXT_BUFFER"},
      {0x98, "READONLY_BUFFER"}};
  // clang-format on
  for (const auto& [code, name] : kNames) {
    if (code == op) return name;
  }
  return "unknown";
}

}  // namespace sensorium
