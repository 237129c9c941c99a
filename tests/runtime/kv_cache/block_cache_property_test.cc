// Random requests over tiny pools, in any order that keeps the contracts, against two judges: a
// device whose every slot remembers the whole history that was written there, which catches a block
// handed out under a wrong name; and a model that keeps sets, maps and lists where the product
// keeps arrays, which says for every call what must come of it.
#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/kv_cache/block_table.h"

namespace sensorium {
namespace {

// What BlockAllocator and BlockCache promise, in the plainest words.
class Model {
 public:
  Model(int32_t num_blocks, BlockCacheOptions options)
      : max_idle_{options.max_idle_prefix_blocks, options.max_idle_encoder_blocks} {
    for (BlockId id = 0; id < num_blocks; ++id) free_.insert(id);
  }

  struct Cached {
    std::string hash;
    std::string parent;  // "" for the first of a chain
    CacheClass cache_class;
  };

  // The product has allocated `id`: was it its to give, and the right one?
  void Allocated(BlockId id) {
    if (!free_.empty()) {
      ASSERT_TRUE(free_.erase(id)) << "block " << id << " isn't free though others are";
    } else {
      ASSERT_FALSE(idle_.empty());
      ASSERT_EQ(id, idle_.front()) << "not the idle block used longest ago";
      Evict(id);
    }
    refs_[id] = 1;
  }

  void Released(BlockId id) {
    if (--refs_[id] > 0) return;
    refs_.erase(id);
    const auto cached = cached_.find(id);
    if (cached == cached_.end()) {
      free_.insert(id);
      return;
    }
    idle_.push_back(id);
    const CacheClass cache_class = cached->second.cache_class;
    if (idle(cache_class) <= max_idle(cache_class)) return;
    const BlockId oldest = *std::find_if(idle_.begin(), idle_.end(), [&](BlockId other) {
      return cached_.at(other).cache_class == cache_class;
    });
    Evict(oldest);
    free_.insert(oldest);
  }

  std::vector<BlockId> Match(CacheClass cache_class, std::span<const ContentHash> chain) {
    std::vector<BlockId> found;
    if (max_idle(cache_class) == 0) return found;
    while (found.size() < chain.size() && by_hash_.contains(chain[found.size()].hex())) {
      found.push_back(by_hash_.at(chain[found.size()].hex()));
      ++refs_[found.back()];
      idle_.remove(found.back());
    }
    hits[static_cast<int>(cache_class)] += static_cast<int64_t>(found.size());
    misses[static_cast<int>(cache_class)] += static_cast<int64_t>(chain.size() - found.size());
    return found;
  }

  void Insert(CacheClass cache_class, std::span<const ContentHash> chain,
              std::span<const BlockId> blocks) {
    if (max_idle(cache_class) == 0) return;
    for (size_t i = 0; i < chain.size(); ++i) {
      const std::string hash = chain[i].hex();
      const auto known = by_hash_.find(hash);
      if (known != by_hash_.end() && known->second != blocks[i]) return;
      by_hash_[hash] = blocks[i];
      cached_[blocks[i]] = {hash, i > 0 ? chain[i - 1].hex() : "", cache_class};
    }
  }

  void Shared(BlockId id) { ++refs_[id]; }

  int32_t refs(BlockId id) const { return refs_.contains(id) ? refs_.at(id) : 0; }
  int32_t used() const { return static_cast<int32_t>(refs_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t idle(CacheClass cache_class) const {
    return static_cast<int32_t>(std::count_if(idle_.begin(), idle_.end(), [&](BlockId id) {
      return cached_.at(id).cache_class == cache_class;
    }));
  }
  int32_t max_idle(CacheClass cache_class) const {
    return max_idle_[static_cast<int>(cache_class)];
  }
  const std::map<BlockId, Cached>& cached() const { return cached_; }
  bool Knows(const std::string& hash) const { return by_hash_.contains(hash); }

  int64_t hits[kNumCacheClasses] = {};
  int64_t misses[kNumCacheClasses] = {};
  int64_t evictions[kNumCacheClasses] = {};

 private:
  void Evict(BlockId id) {
    ++evictions[static_cast<int>(cached_.at(id).cache_class)];
    by_hash_.erase(cached_.at(id).hash);
    cached_.erase(id);
    idle_.remove(id);
  }

  int32_t max_idle_[kNumCacheClasses];
  std::set<BlockId> free_;
  std::map<BlockId, int32_t> refs_;  // used blocks alone
  std::list<BlockId> idle_;          // of both classes, least recently used first
  std::map<BlockId, Cached> cached_;
  std::map<std::string, BlockId> by_hash_;
};

// One table of a request, which has reserved its worst case.
struct Sequence {
  BlockTable table;
  CacheClass cache_class;
  int32_t reserved;
  std::vector<int32_t> tokens;  // those whose KV is written
};

class House {
 public:
  House(uint64_t seed, int32_t num_blocks, int32_t block_size, BlockCacheOptions options)
      : random_(seed),
        block_size_(block_size),
        blocks_(num_blocks),
        cache_(options, blocks_),
        model_(num_blocks, options),
        slots_(int64_t{num_blocks} * block_size) {}
  ~House() { sequences_.clear(); }

  void Step() {
    const uint64_t action = random_() % 16;
    if (sequences_.empty() || action < 3) return Start();
    Sequence& sequence = sequences_[random_() % sequences_.size()];
    if (action < 9) return Write(sequence);
    if (action < 12) return Insert(sequence);
    if (action < 13) return Fork(sequence);
    if (action < 14) return MatchAndLetGo();
    std::swap(sequence, sequences_.back());
    Clear();
  }

  void Check() const {
    blocks_.CheckInvariants();
    cache_.CheckInvariants();
    ASSERT_EQ(blocks_.used(), model_.used());
    ASSERT_EQ(blocks_.free(), model_.free());
    for (BlockId id = 0; id < blocks_.total(); ++id) {
      ASSERT_EQ(blocks_.refs(id), model_.refs(id)) << id;
      ASSERT_EQ(blocks_.cached(id), model_.cached().contains(id)) << id;
    }
    for (const CacheClass c : {CacheClass::kPrefix, CacheClass::kEncoder}) {
      const BlockCacheStats stats = cache_.stats(c);
      ASSERT_EQ(stats.idle, model_.idle(c));
      ASSERT_EQ(stats.hits, model_.hits[static_cast<int>(c)]);
      ASSERT_EQ(stats.misses, model_.misses[static_cast<int>(c)]);
      ASSERT_EQ(stats.evictions, model_.evictions[static_cast<int>(c)]);
    }
    for (const auto& [id, cached] : model_.cached()) {
      ASSERT_TRUE(cached.parent.empty() || model_.Knows(cached.parent))
          << "the parent of block " << id << " was evicted before it";
    }
    for (const Sequence& sequence : sequences_) {
      for (size_t i = 0; i < sequence.tokens.size(); ++i) {
        ASSERT_EQ(slots_.at(sequence.table.Slot(static_cast<int64_t>(i))), History(sequence, i));
      }
    }
  }

  int64_t hits() const {
    return cache_.stats(CacheClass::kPrefix).hits + cache_.stats(CacheClass::kEncoder).hits;
  }
  int64_t evictions() const {
    return cache_.stats(CacheClass::kPrefix).evictions +
           cache_.stats(CacheClass::kEncoder).evictions;
  }

 private:
  // Documents differ late or early and there are few of them, so that requests meet.
  std::vector<int32_t> Prompt() {
    std::vector<int32_t> tokens(random_() % (5 * block_size_) + 1);
    const auto parts_at = static_cast<size_t>(random_() % 4 * block_size_);
    const auto tail = static_cast<int32_t>(random_() % 2);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = i < parts_at ? 7 : tail;
    return tokens;
  }

  std::vector<ContentHash> ChainOf(CacheClass c, std::span<const int32_t> tokens) const {
    ContentHash root;
    root.bytes[0] = static_cast<uint8_t>(c);
    return BlockChain(root, tokens, block_size_);
  }

  // What the KV of token i depends on: the class and every token up to it.
  static std::string History(const Sequence& sequence, size_t i) {
    std::string history(1, static_cast<char>(sequence.cache_class));
    for (size_t j = 0; j <= i; ++j) history += static_cast<char>(sequence.tokens[j]);
    return history;
  }

  void Start() {
    const CacheClass c = random_() % 3 == 0 ? CacheClass::kEncoder : CacheClass::kPrefix;
    const std::vector<int32_t> prompt = Prompt();
    const auto reserved = static_cast<int32_t>(
        BlockTable::BlocksFor(static_cast<int64_t>(prompt.size()), block_size_) + random_() % 3);
    if (!blocks_.Reserve(reserved)) return;
    Sequence sequence{BlockTable(blocks_, block_size_, reserved), c, reserved, {}};
    const auto chain = ChainOf(c, std::span(prompt).first(prompt.size() - 1));
    std::vector<BlockId> found;
    found.reserve(chain.size());
    ASSERT_EQ(cache_.MatchLength(c, chain), MatchLengthOf(c, chain));
    const int32_t length = cache_.Match(c, chain, found);
    ASSERT_EQ(length, static_cast<int32_t>(found.size()));
    ASSERT_EQ(found, model_.Match(c, chain));
    sequence.table.Adopt(found);
    const auto cached_tokens = static_cast<int64_t>(found.size()) * block_size_;
    sequence.tokens.assign(prompt.begin(), prompt.begin() + cached_tokens);
    Append(sequence, std::span(prompt).subspan(cached_tokens));
    sequences_.push_back(std::move(sequence));
  }

  int32_t MatchLengthOf(CacheClass c, std::span<const ContentHash> chain) const {
    int32_t length = 0;
    if (model_.max_idle(c) == 0) return 0;
    while (length < static_cast<int32_t>(chain.size()) && model_.Knows(chain[length].hex())) {
      ++length;
    }
    return length;
  }

  void Append(Sequence& sequence, std::span<const int32_t> tokens) {
    const size_t had = sequence.table.blocks().size();
    sequence.table.Grow(static_cast<int64_t>(sequence.tokens.size() + tokens.size()));
    for (const BlockId id : sequence.table.blocks().subspan(had)) model_.Allocated(id);
    for (const int32_t token : tokens) {
      const size_t position = sequence.tokens.size();
      const int64_t slot = sequence.table.Slot(static_cast<int64_t>(position));
      const auto block = static_cast<BlockId>(slot / block_size_);
      ASSERT_FALSE(blocks_.cached(block)) << "a write into cached block " << block;
      ASSERT_EQ(blocks_.refs(block), 1) << "a write into shared block " << block;
      sequence.tokens.push_back(token);
      slots_.at(slot) = History(sequence, position);
    }
  }

  void Write(Sequence& sequence) {
    const size_t room =
        static_cast<size_t>(sequence.reserved) * block_size_ - sequence.tokens.size();
    std::vector<int32_t> tokens(random_() % (std::min<size_t>(room, 2 * block_size_) + 1));
    for (int32_t& token : tokens) token = static_cast<int32_t>(sequence.tokens.back() & 1);
    Append(sequence, tokens);
  }

  void Insert(Sequence& sequence) {
    auto chain = ChainOf(sequence.cache_class, sequence.tokens);
    if (random_() % 3 == 0) chain.resize(random_() % (chain.size() + 1));  // some keep the rest
    const auto full = sequence.table.blocks().first(chain.size());
    cache_.Insert(sequence.cache_class, chain, full);
    model_.Insert(sequence.cache_class, chain, full);
  }

  void Fork(Sequence& parent) {
    const auto tokens = static_cast<int64_t>(random_() % parent.tokens.size() + 1);
    if (!blocks_.Reserve(parent.reserved)) return;
    std::vector<BlockCopy> copies;
    Sequence fork{parent.table.Fork(tokens, copies),
                  parent.cache_class,
                  parent.reserved,
                  {parent.tokens.begin(), parent.tokens.begin() + tokens}};
    for (int64_t i = 0; i < tokens / block_size_; ++i) model_.Shared(fork.table.blocks()[i]);
    for (const BlockCopy& copy : copies) {
      model_.Allocated(copy.to);
      for (int32_t i = 0; i < block_size_; ++i) {
        slots_[int64_t{copy.to} * block_size_ + i] = slots_[int64_t{copy.from} * block_size_ + i];
      }
    }
    sequences_.push_back(std::move(fork));
  }

  // A match that comes to nothing, as when only all of a window's blocks would help.
  void MatchAndLetGo() {
    const CacheClass c = random_() % 2 == 0 ? CacheClass::kEncoder : CacheClass::kPrefix;
    const auto chain = ChainOf(c, Prompt());
    const auto reserved = static_cast<int32_t>(chain.size());
    if (!blocks_.Reserve(reserved)) return;
    std::vector<BlockId> found;
    found.reserve(chain.size());
    (void)cache_.Match(c, chain, found);
    ASSERT_EQ(found, model_.Match(c, chain));
    for (; !found.empty(); found.pop_back()) {
      blocks_.Release(found.back());
      model_.Released(found.back());
    }
    blocks_.Unreserve(reserved);
  }

  void Clear() {
    Sequence& sequence = sequences_.back();
    const std::vector<BlockId> held(sequence.table.blocks().begin(), sequence.table.blocks().end());
    sequence.table.Clear();
    for (auto id = held.rbegin(); id != held.rend(); ++id) model_.Released(*id);
    blocks_.Unreserve(sequence.reserved);
    sequences_.pop_back();
  }

  std::mt19937_64 random_;
  const int32_t block_size_;
  BlockAllocator blocks_;
  BlockCache cache_;
  Model model_;
  std::vector<std::string> slots_;  // the device: [num_blocks * block_size], each its history
  std::vector<Sequence> sequences_;
};

// (block size, steps): a step's checks cost as much as its tokens.
class BlockCachePropertyTest : public testing::TestWithParam<std::pair<int32_t, int>> {};

TEST_P(BlockCachePropertyTest, DoesAsAPlainModelDoesAndNeverMixesUpContent) {
  const auto [block_size, num_steps] = GetParam();
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  RecordProperty("seed", std::to_string(seed));
  std::mt19937_64 random(seed);
  int64_t hits = 0, evictions = 0;
  for (int round = 0; round < 12; ++round) {
    const auto num_blocks = static_cast<int32_t>(1 + random() % 24);
    const BlockCacheOptions options = {
        .max_idle_prefix_blocks = static_cast<int32_t>(random() % (num_blocks + 1)),
        .max_idle_encoder_blocks = static_cast<int32_t>(random() % (num_blocks + 1))};
    SCOPED_TRACE(testing::Message() << "round " << round << ", " << num_blocks << " blocks");
    House house(random(), num_blocks, block_size, options);
    for (int step = 0; step < num_steps; ++step) {
      house.Step();
      house.Check();
      if (HasFatalFailure()) FAIL() << "in step " << step;
    }
    hits += house.hits();
    evictions += house.evictions();
  }
  EXPECT_GT(hits, 0);
  EXPECT_GT(evictions, 0);
}

INSTANTIATE_TEST_SUITE_P(BlockSizes, BlockCachePropertyTest,
                         testing::Values(std::pair(1, 3000), std::pair(2, 2000), std::pair(3, 1500),
                                         std::pair(16, 300), std::pair(64, 60)),
                         [](const auto& info) { return std::to_string(info.param.first); });

}  // namespace
}  // namespace sensorium
