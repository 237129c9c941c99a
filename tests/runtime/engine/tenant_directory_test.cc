#include "runtime/engine/tenant_directory.h"

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(TenantDirectoryTest, ConfiguredTenantsComeFirstAndKeepTheirIndex) {
  TenantDirectory tenants({{{.name = "gold"}, {.name = "silver"}}}, 4);
  EXPECT_EQ(tenants.Enter("silver").index, 1);
  EXPECT_EQ(tenants.Enter("gold").index, 0);
  tenants.Leave(0);
  tenants.Leave(1);
  EXPECT_EQ(tenants.Enter("a").index, 2);
  EXPECT_EQ(tenants.Enter("b").index, tenants.others()) << "idle or not, configured places are not given away";
  EXPECT_EQ(tenants.Enter("gold").index, 0);
}

TEST(TenantDirectoryTest, ANameKeepsItsIndexWhileItHasRequests) {
  TenantDirectory tenants({}, 3);
  EXPECT_EQ(tenants.Enter("a").index, 0);
  EXPECT_EQ(tenants.Enter("a").index, 0);
  EXPECT_EQ(tenants.Enter("b").index, 1);
  tenants.Leave(0);
  EXPECT_EQ(tenants.Enter("c").index, 2) << "a has one request yet";
  EXPECT_EQ(tenants.Enter("a").index, 0);
}

TEST(TenantDirectoryTest, TheOneIdleForLongestMakesRoomAndOnesThatComeBackInTimeFindTheirPlace) {
  TenantDirectory tenants({}, 3);
  ASSERT_EQ(tenants.Enter("a").index, 0);
  ASSERT_EQ(tenants.Enter("b").index, 1);
  tenants.Leave(1);
  tenants.Leave(0);
  EXPECT_EQ(tenants.Enter("c").index, 1) << "b left first";
  EXPECT_EQ(tenants.Enter("a").index, 0);
  EXPECT_EQ(tenants.Enter("b").index, 2) << "all are busy: the shared place";
}

TEST(TenantDirectoryTest, OneWhoSharedGetsAPlaceOnceThereIsOne) {
  TenantDirectory tenants({}, 2);
  ASSERT_EQ(tenants.Enter("a").index, 0);
  ASSERT_EQ(tenants.Enter("b").index, 1);
  tenants.Leave(0);
  EXPECT_EQ(tenants.Enter("b").index, 0);
  tenants.Leave(1);
  tenants.Leave(0);
}

TEST(TenantDirectoryTest, CountsATenantsRequestsAndWhoIsKnown) {
  TenantDirectory tenants({{{.name = "gold"}}}, 3);
  EXPECT_EQ(tenants.Enter("a").known, 2);
  const TenantDirectory::Entered second = tenants.Enter("a");
  EXPECT_EQ(second.requests, 2);
  EXPECT_EQ(second.known, 2);
  EXPECT_EQ(tenants.Enter("b").known, 3);
  tenants.Leave(second.index);
  const TenantDirectory::Entered gold = tenants.Enter("gold");
  EXPECT_EQ(gold.requests, 1);
  EXPECT_EQ(gold.known, 3) << "who was seen stays known";
}

}  // namespace
}  // namespace sensorium
