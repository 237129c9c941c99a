#include "runtime/kv_cache/content_hash.h"

#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/kv_cache/allocation_count.h"

namespace sensorium {
namespace {

using ::testing::SizeIs;

std::span<const uint8_t> Bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::vector<int32_t> Iota(int32_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

// FIPS 180-2, appendix B, and the empty message of NIST's CAVP vectors.
TEST(ContentHashTest, IsTheSha256OfThePublishedVectors) {
  ContentHasher hasher;
  EXPECT_EQ(hasher.Finish().hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hasher.Update(Bytes("abc")).Finish().hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hasher.Update(Bytes("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"))
                .Finish()
                .hex(),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string as(1000, 'a');
  for (int i = 0; i < 1000; ++i) hasher.Update(Bytes(as));
  EXPECT_EQ(hasher.Finish().hex(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(ContentHashTest, FieldsThatReadTheSameTogetherHashApart) {
  ContentHasher hasher;
  std::set<std::string> hashes;
  hashes.insert(hasher.Update("ab").Update("c").Finish().hex());
  hashes.insert(hasher.Update("a").Update("bc").Finish().hex());
  hashes.insert(hasher.Update("abc").Finish().hex());
  hashes.insert(hasher.Update("abc").Update("").Finish().hex());
  hashes.insert(hasher.Update("").Update("abc").Finish().hex());
  EXPECT_THAT(hashes, SizeIs(5));
}

TEST(ContentHashTest, IntegersAreEightLittleEndianBytes) {
  ContentHasher hasher;
  const ContentHash from_bytes =
      hasher.Update(Bytes(std::string_view("\x04\x03\x02\x01\x00\x00\x00\x00", 8))).Finish();
  EXPECT_EQ(hasher.Update(int64_t{0x01020304}).Finish(), from_bytes);
  const ContentHash minus_one = hasher.Update(Bytes(std::string(8, '\xff'))).Finish();
  EXPECT_EQ(hasher.Update(int64_t{-1}).Finish(), minus_one);
}

TEST(ContentHashTest, GoesIntoBucketsByItsFirstEightBytes) {
  ContentHash hash;
  for (int i = 0; i < 8; ++i) hash.bytes[i] = static_cast<uint8_t>(i + 1);
  hash.bytes[8] = 99;
  EXPECT_EQ(hash.prefix(), 0x0807060504030201u);
  EXPECT_EQ(std::hash<ContentHash>()(hash), 0x0807060504030201u);
}

TEST(ContentHashTest, AHasherThatIsKeptAllocatesNothing) {
  ContentHasher hasher;
  const std::vector<int32_t> tokens = Iota(64);
  ContentHash hash;
  const AllocationCount count;
  for (int i = 0; i < 100; ++i) hash = NextBlockHash(hasher, hash, tokens);
  EXPECT_EQ(count.since_construction(), 0);
}

TEST(BlockChainTest, NamesEachFullBlockByItsTokensAndItsParent) {
  const ContentHash root = ContentHasher().Update("root").Finish();
  const std::vector<int32_t> tokens = {1, 2, 3, -1, 70000};
  const std::vector<ContentHash> chain = BlockChain(root, tokens, 2);
  ASSERT_THAT(chain, SizeIs(2));  // the last token fills no block
  ContentHasher by_hand;
  by_hand.Update(root.bytes).Update(Bytes(std::string_view("\x01\x00\x00\x00\x02\x00\x00\x00", 8)));
  EXPECT_EQ(chain[0], by_hand.Finish());
  by_hand.Update(chain[0].bytes)
      .Update(Bytes(std::string_view("\x03\x00\x00\x00\xff\xff\xff\xff", 8)));
  EXPECT_EQ(chain[1], by_hand.Finish());
}

TEST(BlockChainTest, HasNoHashForABlockThatIsNotFull) {
  for (const int32_t block_size : {1, 3, 16, 64}) {
    EXPECT_THAT(BlockChain({}, Iota(block_size - 1), block_size), SizeIs(0));
    EXPECT_THAT(BlockChain({}, Iota(block_size), block_size), SizeIs(1));
    EXPECT_THAT(BlockChain({}, Iota(3 * block_size - 1), block_size), SizeIs(2));
  }
}

TEST(BlockChainTest, ALongerPromptExtendsTheChainOfItsPrefix) {
  const std::vector<ContentHash> longer = BlockChain({}, Iota(80), 16);
  const std::vector<ContentHash> shorter = BlockChain({}, Iota(50), 16);
  ASSERT_THAT(shorter, SizeIs(3));
  for (size_t i = 0; i < shorter.size(); ++i) EXPECT_EQ(shorter[i], longer[i]);
}

TEST(BlockChainTest, OneOtherTokenOrRootChangesEveryHashFromThereOn) {
  std::vector<int32_t> tokens = Iota(64);
  const std::vector<ContentHash> chain = BlockChain({}, tokens, 16);
  tokens[20] = 99;
  const std::vector<ContentHash> other_token = BlockChain({}, tokens, 16);
  EXPECT_EQ(other_token[0], chain[0]);
  for (size_t i = 1; i < chain.size(); ++i) EXPECT_NE(other_token[i], chain[i]) << i;
  const ContentHash root = ContentHasher().Update("another tenant").Finish();
  const std::vector<ContentHash> other_root = BlockChain(root, Iota(64), 16);
  for (size_t i = 0; i < chain.size(); ++i) EXPECT_NE(other_root[i], chain[i]) << i;
}

TEST(BlockChainTest, BlocksWithoutTokensAreNamedByTheirIndex) {
  EXPECT_EQ(BlockChain({}, 5), BlockChain({}, Iota(5), 1));
  EXPECT_THAT(BlockChain({}, 0), SizeIs(0));
}

}  // namespace
}  // namespace sensorium
