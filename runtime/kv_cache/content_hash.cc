#include "runtime/kv_cache/content_hash.h"

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>

#include <bit>
#include <cstring>

#include "runtime/base/check.h"

namespace sensorium {

namespace {

// The functions below EVP, which OpenSSL 3.0 would rather have forgotten: EVP mallocs its state
// anew at each hash, and the engine hashes in its steps.
SHA256_CTX* Context(std::array<uint64_t, 14>& state) {
  static_assert(sizeof(state) >= sizeof(SHA256_CTX) && alignof(uint64_t) >= alignof(SHA256_CTX));
  return reinterpret_cast<SHA256_CTX*>(state.data());
}

}  // namespace

// Integers are hashed as they lie in memory, and a hash in a trace must mean the same elsewhere.
static_assert(std::endian::native == std::endian::little);

uint64_t ContentHash::prefix() const {
  uint64_t value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

std::string ContentHash::hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string digits;
  digits.reserve(2 * bytes.size());
  for (const uint8_t byte : bytes) {
    digits.push_back(kDigits[byte >> 4]);
    digits.push_back(kDigits[byte & 15]);
  }
  return digits;
}

ContentHasher::ContentHasher() { SHA256_Init(Context(state_)); }  // none of the three can fail

ContentHasher& ContentHasher::Update(std::span<const uint8_t> bytes) {
  SHA256_Update(Context(state_), bytes.data(), bytes.size());
  return *this;
}

ContentHasher& ContentHasher::Update(std::string_view field) {
  Update(static_cast<int64_t>(field.size()));
  return Update(std::span(reinterpret_cast<const uint8_t*>(field.data()), field.size()));
}

ContentHasher& ContentHasher::Update(int64_t value) {
  return Update(std::span(reinterpret_cast<const uint8_t*>(&value), sizeof(value)));
}

ContentHash ContentHasher::Finish() {
  ContentHash hash;
  static_assert(sizeof(hash.bytes) == SHA256_DIGEST_LENGTH);
  SHA256_Final(hash.bytes.data(), Context(state_));
  SHA256_Init(Context(state_));
  return hash;
}

ContentHash NextBlockHash(ContentHasher& hasher, const ContentHash& parent,
                          std::span<const int32_t> block_tokens) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(block_tokens.data());
  return hasher.Update(parent.bytes).Update(std::span(bytes, block_tokens.size_bytes())).Finish();
}

std::vector<ContentHash> BlockChain(const ContentHash& root, std::span<const int32_t> tokens,
                                    int32_t block_size) {
  CHECK_GT(block_size, 0);
  std::vector<ContentHash> chain(tokens.size() / block_size);
  ContentHasher hasher;
  const ContentHash* parent = &root;
  for (size_t i = 0; i < chain.size(); ++i) {
    chain[i] = NextBlockHash(hasher, *parent, tokens.subspan(i * block_size, block_size));
    parent = &chain[i];
  }
  return chain;
}

std::vector<ContentHash> BlockChain(const ContentHash& root, int32_t num_blocks) {
  CHECK_GE(num_blocks, 0);
  std::vector<int32_t> block_idx(num_blocks);
  for (int32_t i = 0; i < num_blocks; ++i) block_idx[i] = i;
  return BlockChain(root, block_idx, 1);
}

}  // namespace sensorium
