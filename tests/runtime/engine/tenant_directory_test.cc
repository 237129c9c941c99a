#include "runtime/engine/tenant_directory.h"

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(TenantDirectoryTest, ConfiguredTenantsComeFirstAndKeepTheirIndex) {
  TenantDirectory tenants({{{.name = "gold"}, {.name = "silver"}}}, 4);
  EXPECT_EQ(tenants.Enter("silver"), 1);
  EXPECT_EQ(tenants.Enter("gold"), 0);
  tenants.Leave(0);
  tenants.Leave(1);
  EXPECT_EQ(tenants.Enter("a"), 2);
  EXPECT_EQ(tenants.Enter("b"), tenants.others()) << "idle or not, configured places are not given away";
  EXPECT_EQ(tenants.Enter("gold"), 0);
}

TEST(TenantDirectoryTest, ANameKeepsItsIndexWhileItHasRequests) {
  TenantDirectory tenants({}, 3);
  EXPECT_EQ(tenants.Enter("a"), 0);
  EXPECT_EQ(tenants.Enter("a"), 0);
  EXPECT_EQ(tenants.Enter("b"), 1);
  tenants.Leave(0);
  EXPECT_EQ(tenants.Enter("c"), 2) << "a has one request yet";
  EXPECT_EQ(tenants.Enter("a"), 0);
}

TEST(TenantDirectoryTest, TheOneIdleForLongestMakesRoomAndOnesThatComeBackInTimeFindTheirPlace) {
  TenantDirectory tenants({}, 3);
  ASSERT_EQ(tenants.Enter("a"), 0);
  ASSERT_EQ(tenants.Enter("b"), 1);
  tenants.Leave(1);
  tenants.Leave(0);
  EXPECT_EQ(tenants.Enter("c"), 1) << "b left first";
  EXPECT_EQ(tenants.Enter("a"), 0);
  EXPECT_EQ(tenants.Enter("b"), 2) << "all are busy: the shared place";
}

TEST(TenantDirectoryTest, OneWhoSharedGetsAPlaceOnceThereIsOne) {
  TenantDirectory tenants({}, 2);
  ASSERT_EQ(tenants.Enter("a"), 0);
  ASSERT_EQ(tenants.Enter("b"), 1);
  tenants.Leave(0);
  EXPECT_EQ(tenants.Enter("b"), 0);
  tenants.Leave(1);
  tenants.Leave(0);
}

}  // namespace
}  // namespace sensorium
