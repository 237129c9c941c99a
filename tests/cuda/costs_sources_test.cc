// cuda/COSTS.md is made by the compiler where there is one. Where there is none it can still be
// seen to be stale: it names the sources and flags that it was made from. Nothing is compiled or
// run here; elsewhere the kernels are executed by emulation.
#include <string>

#include "gtest/gtest.h"
#include "tests/cuda/costs_file.h"

namespace sensorium {
namespace {

TEST(CostsSourcesTest, TheCompilersTablesAreOfTheseSources) {
  for (const char* title : {kCompilerSection, kMachineCodeSection}) {
    const std::string kept = CostsSection(title);
    ASSERT_NE(kept, "") << title;
    EXPECT_NE(kept.find("Of sources " + KernelSources() + "."), std::string::npos)
        << "the kernels or their flags changed since '" << title << "' of cuda/COSTS.md was made, "
        << "and are now " << KernelSources() << ": where nvcc and cuobjdump are, cmake --preset "
        << "cuda, cmake --build --preset cuda --target cuda cuda_costs_test, then "
        << "SENSORIUM_UPDATE_COSTS=1 ctest --preset cuda -R cuda_costs_test, and commit the file";
  }
}

TEST(CostsSourcesTest, CommentsAndLayoutAreNoSources) {
  EXPECT_EQ(CodeOf("// a\nint  b;  // c\n\n  d();\n"), "int b; d();");
  EXPECT_NE(CodeOf("int b;"), CodeOf("int c;"));
}

}  // namespace
}  // namespace sensorium
