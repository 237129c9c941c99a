#include "runtime/kv_cache/content_hash.h"

#include <openssl/evp.h>

#include <bit>
#include <cstring>

#include "runtime/base/check.h"

namespace sensorium {

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

void ContentHasher::FreeContext::operator()(evp_md_ctx_st* context) const {
  EVP_MD_CTX_free(context);
}

void ContentHasher::FreeDigest::operator()(evp_md_st* digest) const { EVP_MD_free(digest); }

// EVP fails only where SHA-256 is not to be had or memory has run out, neither of which a request
// can bring about.
ContentHasher::ContentHasher()
    : sha256_(EVP_MD_fetch(nullptr, "SHA256", nullptr)), context_(EVP_MD_CTX_new()) {
  CHECK(sha256_ != nullptr && context_ != nullptr) << "libcrypto has no SHA-256";
  Start();
}

void ContentHasher::Start() {
  CHECK_EQ(EVP_DigestInit_ex2(context_.get(), sha256_.get(), nullptr), 1);
}

ContentHasher& ContentHasher::Update(std::span<const uint8_t> bytes) {
  CHECK_EQ(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()), 1);
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
  unsigned int size = 0;
  CHECK_EQ(EVP_DigestFinal_ex(context_.get(), hash.bytes.data(), &size), 1);
  CHECK_EQ(size, hash.bytes.size());
  Start();
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
