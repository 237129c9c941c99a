// Names of content: two things with the same hash are the same thing, so one may stand in for the
// other. SHA-256, because a cache that answers one tenant with another's words is worse than none:
// a 64-bit hash can be made to collide, this one cannot.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sensorium {

struct ContentHash {
  std::array<uint8_t, 32> bytes{};

  uint64_t prefix() const;  // the first 8 bytes, little endian: enough to pick a bucket
  std::string hex() const;  // 64 lower-case digits
  friend bool operator==(const ContentHash&, const ContentHash&) = default;
};

// SHA-256 over what Update is given. One thread at a time; any thread. Takes no memory.
class ContentHasher {
 public:
  ContentHasher();

  // The bytes as they are. Where something follows them, their number goes first: see below.
  ContentHasher& Update(std::span<const uint8_t> bytes);
  // The length (as int64_t), then the bytes: ("ab", "c") and ("a", "bc") differ.
  ContentHasher& Update(std::string_view field);
  ContentHasher& Update(int64_t value);  // 8 bytes, little endian

  ContentHash Finish();  // the hash of all since the last Finish; then starts afresh

 private:
  std::array<uint64_t, 14> state_;  // OpenSSL's SHA256_CTX, which stays out of this header
};

// The KV of a block depends on its tokens and on all before them, and so does its name:
// hash i = SHA-256(hash i-1 || tokens of block i as int32, little endian), hash -1 = root.
//
// The root must hold all else that the KV depends on, or that decides who may share it:
//   - a salt of the tenant's, secret and random: keeps tenants apart (by timing one could ask what
//     another has asked) and, as nobody can compute its hashes, keeps anyone from crowding a
//     bucket;
//   - the model: its name and the weights' version, and the cache class where a model has two;
//   - the content hash of the media, in order, with whatever changes how they are encoded: image
//     tokens are the same ids for every picture.
// The block size needs no place there: it says how many tokens go into each hash.
ContentHash NextBlockHash(ContentHasher& hasher, const ContentHash& parent,
                          std::span<const int32_t> block_tokens);

// The hashes of the full blocks of `tokens`; what is left over has none. REQUIRES: block_size > 0
std::vector<ContentHash> BlockChain(const ContentHash& root, std::span<const int32_t> tokens,
                                    int32_t block_size);

// For blocks without tokens, such as the cross-attention KV of an encoded window, whose root says
// all: block i is named as if its only token were i.
std::vector<ContentHash> BlockChain(const ContentHash& root, int32_t num_blocks);

}  // namespace sensorium

template <>
struct std::hash<sensorium::ContentHash> {
  size_t operator()(const sensorium::ContentHash& hash) const noexcept { return hash.prefix(); }
};
