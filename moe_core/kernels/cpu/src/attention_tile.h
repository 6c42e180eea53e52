// Attention of a few queries over a block of keys at a time: what vectors and tiles of the processor share.
//
// What was found before a block is brought to terms of the new best score (the softmax of Milakov and Gimelshein). Blocks end at
// whole multiples of their size, whoever asks, and every row does the same whatever stands beside it: how a prompt is cut into
// pieces changes no bit.
// Source: Dao et al., "FlashAttention" (https://arxiv.org/abs/2205.14135), algorithm 1.
#pragma once
#include <algorithm>
#include <vector>

#include "exponential.h"
#include "multiply.h"

namespace TURNOUT_ISA {

// Keys of a block: with their values 64 KiB where heads are 64 wide, which stay near for all the tiles of a unit.
constexpr int64_t kKeyBlock = 256;
// Query rows that go over keys together.
constexpr int kQueryRows = kTiles ? kTileInputs : kInputs;

// Up to kQueryRows query rows of one key-value head. Places of keys are counted in their sequence.
struct QueryTile {
  int num;
  int64_t firsts[kQueryRows], ends[kQueryRows];  // the keys that each row sees; none of a row past the last
  // The best score of each row so far, and its shares' sum in terms of that; in tiles a sum for each of sixteen lanes.
  alignas(64) float bests[kTiles ? kQueryRows : 16], totals[kTiles ? kQueryRows * 16 : 16];
  // Word s * num + n: values 2s and 2s + 1 of row n. In tiles chunk c * 32 + n, 64 bytes: values 32c to 32c + 31.
  uint8_t* queries;
  float* sums;  // (rows, width): weighted values in the same terms

  int64_t first() const { return *std::min_element(firsts, firsts + num); }
  int64_t end() const { return *std::max_element(ends, ends + num); }
};

// Values that are infinite or NaN. Products leave them out, for 0 times one is NaN, and rows share tiles that do not share keys.
struct EndlessValues {
  std::vector<int64_t> keys;  // those that have some, in order
  std::vector<float> rows;    // (keys, width): these values, 0 in the place of others

  void clear() {
    keys.clear();
    rows.clear();
  }
};

// Keys [first, first + num) and what they are worth, in panels: `keys` of (num, d), `values` of (e, keys of the sequence).
struct KeyBlock {
  int64_t first, num;
  const uint8_t *keys, *values;
  int64_t key_steps, key_panel_bytes, value_panels, value_panel_bytes;
  const EndlessValues* endless;
};

// What a block's infinite and NaN values add to the rows that see them; a row's shares are `stride` apart.
static inline void add_endless(const KeyBlock& block, QueryTile& tile, const bf16* shares, int64_t stride) {
  const std::vector<int64_t>& keys = block.endless->keys;
  const int64_t width = block.value_panels * 32, end = block.first + block.num;
  for (auto key = std::lower_bound(keys.begin(), keys.end(), block.first); key != keys.end() && *key < end; key++) {
    const float* values = block.endless->rows.data() + (key - keys.begin()) * width;
    for (int n = 0; n < tile.num; n++) {
      if (*key < tile.firsts[n] || *key >= tile.ends[n]) continue;
      const F16 share = splat_f(widen(shares[n * stride + *key - block.first]));
      for (int64_t i = 0; i < width; i += 16)
        store_f(tile.sums + n * width + i, fma(load_f(tile.sums + n * width + i), share, load_f(values + i)));
    }
  }
}

}  // namespace TURNOUT_ISA
