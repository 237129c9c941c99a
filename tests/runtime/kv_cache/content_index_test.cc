#include "runtime/kv_cache/content_index.h"

#include <optional>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

// Bucket and rest apart: SHA-256 itself would hardly ever give two hashes one bucket.
ContentHash Hash(uint8_t bucket, uint8_t rest) {
  ContentHash hash;
  hash.bytes[0] = bucket;
  hash.bytes[31] = rest;
  return hash;
}

// Buckets so few, and at the table's end, that runs are long, merge and wrap around.
TEST(ContentIndexTest, FindsWhatIsInItOverThousandsOfCollidingSteps) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int32_t num_ids : {1, 2, 5, 16, 33}) {
    ContentIndex index(num_ids);
    std::vector<std::optional<ContentHash>> model(num_ids);  // by id
    const auto holder = [&](const ContentHash& hash) -> std::optional<int32_t> {
      for (int32_t id = 0; id < num_ids; ++id) {
        if (model[id] == hash) return id;
      }
      return std::nullopt;
    };
    int32_t size = 0;
    for (int step = 0; step < 4000; ++step) {
      const auto id = static_cast<int32_t>(random() % num_ids);
      const ContentHash hash = Hash(static_cast<uint8_t>(125 + random() % 4), random() % 30);
      ASSERT_EQ(index.Find(hash), holder(hash));
      if (model[id]) {
        ASSERT_EQ(index.hash(id), *model[id]);
        index.Erase(id);
        model[id].reset();
        --size;
      } else if (!holder(hash)) {
        index.Insert(hash, id);
        model[id] = hash;
        ++size;
      }
      ASSERT_EQ(index.size(), size);
      for (int32_t i = 0; i < num_ids; ++i) {
        if (model[i]) {
          ASSERT_EQ(index.Find(*model[i]), i);
        }
      }
    }
  }
}

TEST(ContentIndexTest, TellsHashesApartThatShareTheirFirstEightBytes) {
  ContentIndex index(2);
  index.Insert(Hash(1, 1), 0);
  EXPECT_EQ(index.Find(Hash(1, 2)), std::nullopt);
  index.Insert(Hash(1, 2), 1);
  EXPECT_EQ(index.Find(Hash(1, 1)), 0);
  EXPECT_EQ(index.Find(Hash(1, 2)), 1);
}

TEST(ContentIndexDeathTest, AbortsOnAKnownHashAndOnAnUnknownId) {
  ContentIndex index(2);
  index.Insert(Hash(1, 1), 0);
  EXPECT_DEATH(index.Insert(Hash(1, 1), 1), "the hash is known");
  EXPECT_DEATH(index.Erase(1), "not in the index");
}

TEST(ContentIndexTest, AnIndexForNothingFindsNothing) {
  EXPECT_EQ(ContentIndex(0).Find(Hash(0, 0)), std::nullopt);
}

}  // namespace
}  // namespace sensorium
