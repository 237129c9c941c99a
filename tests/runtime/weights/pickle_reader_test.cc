#include "runtime/weights/pickle_reader.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/weights/file_writers.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::vector<PickledTensor>> Read(const std::string& pickle) {
  return ReadStateDictPickle(AsBytes(pickle), "x.bin");
}

// The message with which a pickle is refused; it names the file.
std::string Refusal(const std::string& pickle) {
  const auto tensors = Read(pickle);
  EXPECT_FALSE(tensors.ok());
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tensors.status().message(), HasSubstr("x.bin: pickle byte "));
  return std::string(tensors.status().message());
}

// A state dict whose only entry, 'a', is what the opcodes leave on the stack.
std::string WithEntry(const Pickle& value) {
  // Behind the two bytes of PROTO that every Pickle begins with, and before its STOP.
  const std::string opcodes = Pickle(value).Stop();
  return Pickle().BeginDict().Text("a").Raw(opcodes.substr(2, opcodes.size() - 3)).EndDict();
}

const PickledStorage kSix = {.key = "7", .elements = 6};

TEST(PickleReaderTest, ReadsTheViewsOfAStateDict) {
  const auto tensors =
      Read(Pickle()
               .BeginDict()
               .Text("w")
               .Tensor(kSix, 0, {2, 3}, {3, 1})
               .Text("b")
               .Tensor({.type = "BFloat16Storage", .key = "8", .elements = 9}, 4, {5}, {1})
               .Text("h")
               .Tensor({.type = "HalfStorage", .key = "9", .elements = 1}, 0, {}, {})
               .EndDict());
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const PickledTensor &w = (*tensors)[0], &b = (*tensors)[1], &h = (*tensors)[2];
  EXPECT_EQ(w.name, "w");
  EXPECT_EQ(w.dtype, DType::kFloat32);
  EXPECT_EQ(w.storage, "7");
  EXPECT_EQ(w.storage_elements, 6);
  EXPECT_THAT(w.shape, ElementsAre(2, 3));
  EXPECT_THAT(w.strides, ElementsAre(3, 1));
  EXPECT_EQ(b.dtype, DType::kBFloat16);
  EXPECT_EQ(b.offset, 4);
  EXPECT_EQ(h.dtype, DType::kFloat16);
  EXPECT_TRUE(h.shape.empty());
}

TEST(PickleReaderTest, ReadsEntriesSetOneByOneAndInBatches) {
  const auto tensors = Read(Pickle()
                                .BeginDict()
                                .Text("a")
                                .Tensor(kSix, 0, {6}, {1})
                                .Raw("u")
                                .Text("b")
                                .Tensor(kSix, 1, {5}, {1})
                                .Raw("s")
                                .Stop());
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[1].name, "b");
}

TEST(PickleReaderTest, ReadsParametersAsTheirTensors) {
  Pickle parameter;
  parameter.Global("torch._utils", "_rebuild_parameter").Op('(').Tensor(kSix, 0, {6}, {1});
  parameter.Op(0x88).OrderedDict().Raw("tR");
  const auto tensors = Read(WithEntry(parameter));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_THAT((*tensors)[0].shape, ElementsAre(6));
}

// What torch.nn.Module.state_dict() leaves: OrderedDict._metadata = {'': {'version': 1}, ...}.
TEST(PickleReaderTest, DropsTheMetadataOfAModule) {
  Pickle pickle;
  pickle.BeginDict().Text("a").Tensor(kSix, 0, {6}, {1}).Raw("u");
  pickle.Raw("}").Text("_metadata").BeginDict();
  pickle.Text("").Raw("}").Text("version").Int(1).Raw("s");
  pickle.Text("layer").Raw("}").Text("version").Int(2).Raw("s");
  const auto tensors = Read(pickle.Raw("usb").Stop());
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 1u);
  EXPECT_EQ((*tensors)[0].name, "a");
}

TEST(PickleReaderTest, ReadsATensorTwiceFromTheMemo) {
  Pickle tied;
  tied.BeginDict().Text("a").Tensor(kSix, 0, {6}, {1}).Raw("q\x05").Text("b").Raw("h\x05");
  const auto tensors = Read(tied.EndDict());
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].storage, (*tensors)[1].storage);
}

TEST(PickleReaderTest, RefusesGlobalsByName) {
  const std::pair<const char*, const char*> kBad[] = {{"os", "system"},
                                                      {"posix", "system"},
                                                      {"builtins", "eval"},
                                                      {"builtins", "exec"},
                                                      {"__builtin__", "getattr"},
                                                      {"subprocess", "Popen"},
                                                      {"torch", "load"},
                                                      {"torch._utils", "_rebuild"},
                                                      {"torch.hub", "load"},
                                                      {"collections", "deque"},
                                                      {"numpy.core.multiarray", "_reconstruct"}};
  for (const auto& [module, attribute] : kBad) {
    const std::string name = std::string("'") + module + "." + attribute + "'";
    const Pickle call = Pickle().Global(module, attribute).Text("id").Raw("\x85R");
    EXPECT_THAT(Refusal(WithEntry(call)),
                AllOf(HasSubstr("the global " + name), HasSubstr("nothing was executed")));
    Pickle stack;
    stack.Text(module).Text(attribute).Op(0x93);
    EXPECT_THAT(Refusal(WithEntry(stack)), HasSubstr("the global " + name));
  }
}

TEST(PickleReaderTest, RefusesOpcodesByName) {
  const std::pair<unsigned char, const char*> kBad[] = {
      {'i', "INST (0x69)"},       {'o', "OBJ (0x6f)"},     {0x81, "NEWOBJ (0x81)"},
      {0x92, "NEWOBJ_EX (0x92)"}, {0x82, "EXT1 (0x82)"},   {'P', "PERSID (0x50)"},
      {'2', "DUP (0x32)"},        {0x8b, "LONG4 (0x8b)"},  {'I', "INT (0x49)"},
      {0xff, "unknown (0xff)"},   {0x00, "unknown (0x00)"}};
  for (const auto& [op, name] : kBad) {
    EXPECT_THAT(Refusal(Pickle().Op(op).Stop()), HasSubstr(std::string("the opcode ") + name));
  }
}

TEST(PickleReaderTest, RefusesToCallWhatIsNoFunction) {
  EXPECT_THAT(Refusal(WithEntry(Pickle().Text("print").Raw(")R"))), HasSubstr("REDUCE"));
  EXPECT_THAT(Refusal(WithEntry(Pickle().Global("torch", "FloatStorage").Raw(")R"))),
              HasSubstr("REDUCE of 'torch.FloatStorage'"));
  EXPECT_THAT(Refusal(WithEntry(Pickle().Global("collections", "OrderedDict").Raw("]R"))),
              HasSubstr("REDUCE"));
  EXPECT_THAT(Refusal(WithEntry(Pickle().Global("collections", "OrderedDict").Raw("N\x85R"))),
              HasSubstr("with arguments"));
}

TEST(PickleReaderTest, RefusesEveryPrefix) {
  const std::string whole = WithEntry(Pickle().Tensor(kSix, 0, {2, 3}, {3, 1}));
  ASSERT_TRUE(Read(whole).ok()) << Read(whole).status();
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_FALSE(Read(whole.substr(0, n)).ok()) << n << " of " << whole.size() << " bytes";
  }
}

TEST(PickleReaderTest, SurvivesContainersNestedAMillionDeep) {
  std::string tuples, lists;
  for (int i = 0; i < 1'000'000; ++i) tuples += '\x85', lists += "]";
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw("N" + tuples))), HasSubstr("'a' is no tensor"));
  lists += std::string(999'999, 'a');  // each list into the one below it
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw(lists))), HasSubstr("'a' is no tensor"));
}

TEST(PickleReaderTest, SurvivesContainersInsideThemselves) {
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw("]q\x01h\x01"
                                             "a"))),
              HasSubstr("'a' is no tensor"));
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw("}q\x01Nh\x01s"))), HasSubstr("'a' is no tensor"));
}

TEST(PickleReaderTest, MemoBombsStaySmall) {
  // Each tuple holds the one before three times: 3^100000 leaves, were it ever walked.
  std::string bomb = "N";
  for (int i = 0; i < 100'000; ++i) bomb += "q\x01h\x01h\x01\x87";
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw(bomb))), HasSubstr("'a' is no tensor"));
}

TEST(PickleReaderTest, RefusesMoreValuesThanAnyCheckpointHas) {
  const std::string nones(4'000'001, 'N');
  EXPECT_THAT(Refusal(Pickle().Raw(nones).Stop()), HasSubstr("more than 4000000 values"));
  std::string recalled = "Nq\x01";
  for (int i = 0; i < 4'000'000; ++i) recalled += "h\x01";
  EXPECT_THAT(Refusal(Pickle().Raw(recalled).Stop()), HasSubstr("more than 4000000 values"));
}

TEST(PickleReaderTest, RefusesAHugeInteger) {
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw("\x8a\xff" + std::string(255, '\x7f')))),
              HasSubstr("an integer of 255 bytes; the limit is 8"));
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw("\x8b\xff\xff\xff\x7f"))), HasSubstr("LONG4"));
}

TEST(PickleReaderTest, RefusesTextsLongerThanThePickle) {
  EXPECT_THAT(Refusal(Pickle().Raw("X\xff\xff\xff\xff").Stop()),
              HasSubstr("a string of 4294967295 bytes runs over the end"));
}

TEST(PickleReaderTest, RefusesTensorsOfNonsense) {
  const auto refusal = [](int64_t offset, std::vector<int64_t> shape, std::vector<int64_t> stride) {
    return Refusal(WithEntry(Pickle().Tensor(kSix, offset, shape, stride)));
  };
  EXPECT_THAT(refusal(-1, {6}, {1}), HasSubstr("wrong kinds"));
  EXPECT_THAT(refusal(0, {-6}, {1}), HasSubstr("no integers from 0 on"));
  EXPECT_THAT(refusal(0, {6}, {-1}), HasSubstr("no integers from 0 on"));
  EXPECT_THAT(refusal(0, {2, 3}, {1}), HasSubstr("2 axes and 1 strides"));
  EXPECT_THAT(refusal(0, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}), HasSubstr("the limit is 4"));
}

TEST(PickleReaderTest, RefusesIntegerTensorsByNameAndType) {
  EXPECT_THAT(
      Refusal(WithEntry(Pickle().Tensor({.type = "LongStorage", .elements = 1}, 0, {}, {}))),
      AllOf(HasSubstr("tensor 'a'"), HasSubstr("torch.LongStorage")));
}

TEST(PickleReaderTest, RefusesANameThatAppearsTwice) {
  Pickle pickle;
  pickle.BeginDict().Text("a").Tensor(kSix, 0, {6}, {1}).Text("a").Tensor(kSix, 0, {6}, {1});
  EXPECT_THAT(Refusal(pickle.EndDict()), HasSubstr("the name 'a' appears twice"));
}

TEST(PickleReaderTest, RefusesWhatIsNoDictOfTensors) {
  EXPECT_THAT(Refusal(Pickle().Raw("N").Stop()), HasSubstr("something else than one dict"));
  EXPECT_THAT(Refusal(Pickle().Raw("}}").Stop()), HasSubstr("something else than one dict"));
  EXPECT_THAT(Refusal(Pickle().Stop()), HasSubstr("something else than one dict"));
  EXPECT_THAT(Refusal(WithEntry(Pickle().Raw("}"))), HasSubstr("'a' is no tensor"));
  EXPECT_THAT(Refusal(Pickle().Raw("}N").Tensor(kSix, 0, {6}, {1}).Raw("s").Stop()),
              HasSubstr("no string"));
}

TEST(PickleReaderTest, RefusesOpcodesThatFindTooLittleOnTheStack) {
  for (const char* ops :
       {"t",    "\x85",  "\x87",  "a",   "e",  "s",      "u",   "R",      "b",      "Q",
        "\x93", "q\x01", "h\x01", "((t", "(a", "}(\x85", "}Ns", "}(NNNu", "(q\x01", "N(NR"}) {
    EXPECT_FALSE(Read(Pickle().Raw(ops).Stop()).ok()) << testing::PrintToString(ops);
  }
}

TEST(PickleReaderTest, RefusesToTakeAMarkForAValue) {
  const auto with_metadata = [](const char* value) {
    return Pickle().BeginDict().Raw("u}").Text("_metadata").Raw(value).Raw("sb").Stop();
  };
  EXPECT_TRUE(Read(with_metadata("N")).ok());
  EXPECT_THAT(Refusal(with_metadata("(")), HasSubstr("the stack is empty"));
}

}  // namespace
}  // namespace sensorium
