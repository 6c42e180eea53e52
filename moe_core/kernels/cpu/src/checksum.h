// XXH64 with seed 0: finds damage as fast as memory is read; no defence against who means to deceive.
// Source: Y. Collet, "xxHash fast digest algorithm", XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
#pragma once
#include <cstdint>
#include <cstring>

namespace turnout {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                   kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;

inline uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

inline uint64_t with_word(uint64_t sum, uint64_t word) { return rotated(sum + word * kPrime2, 31) * kPrime1; }

// Words are little-endian in the specification; so is every processor that the panels are packed for.
template <typename Word>
Word word_at(const uint8_t* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// Four sums over stripes of 32 bytes, joined; moves `bytes` to what is left over.
inline uint64_t checksum_of_stripes(const uint8_t*& bytes, const uint8_t* end) {
  uint64_t sums[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  for (; end - bytes >= 32; bytes += 32)
    for (int lane = 0; lane < 4; lane++) sums[lane] = with_word(sums[lane], word_at<uint64_t>(bytes + 8 * lane));
  uint64_t hash = rotated(sums[0], 1) + rotated(sums[1], 7) + rotated(sums[2], 12) + rotated(sums[3], 18);
  for (uint64_t sum : sums) hash = (hash ^ with_word(0, sum)) * kPrime1 + kPrime4;
  return hash;
}

inline uint64_t checksum(const uint8_t* bytes, int64_t num_bytes) {
  const uint8_t* end = bytes + num_bytes;
  uint64_t hash = (num_bytes >= 32 ? checksum_of_stripes(bytes, end) : kPrime5) + uint64_t(num_bytes);
  for (; end - bytes >= 8; bytes += 8)
    hash = rotated(hash ^ with_word(0, word_at<uint64_t>(bytes)), 27) * kPrime1 + kPrime4;
  if (end - bytes >= 4) {
    hash = rotated(hash ^ word_at<uint32_t>(bytes) * kPrime1, 23) * kPrime2 + kPrime3;
    bytes += 4;
  }
  for (; bytes < end; bytes++) hash = rotated(hash ^ *bytes * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace turnout
