// Attention of 32 queries over a block of keys with both products in tiles (Intel AMX).
//
// A panel's step is two columns of 32 keys, or two keys' values: the second operand as it lies. Scores are made for a whole block
// before one is read: what is read behind the store of a tile waits for its product. Shares take the place of their scores, so that
// a block of both is half of the first cache.
#pragma once
#include "attention_tile.h"
#include "tiles.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_TILE_ZERO)
// Row n of a tile, of which nothing has been attended to but its sink, where there is one.
static void begin_row(QueryTile& tile, int n, const bf16* query, int64_t d, const float* sink) {
  uint8_t* to = tile.queries + n * 64;
  int64_t i = 0;
  for (; i + 32 <= d; i += 32) std::memcpy(to + i * 64, query + i, 64);
  if (i < d) std::memcpy(to + i * 64, query + i, (d - i) * 2);
  store_f(tile.totals + n * 16, zero_f());
  tile.totals[n * 16] = sink ? 1.0f : 0.0f;
  tile.bests[n] = sink ? *sink : kLowest;
}
static inline float total_of(const QueryTile& tile, int n) { return sum_of(load_f(tile.totals + n * 16)); }

// Tiles 0 to 3 as rows that are `stride` numbers apart.
static inline void load_sums(const float* from, int64_t stride, bool both) {
  asm volatile("" ::: "memory");
  TURNOUT_TILE_LOAD(0, from, stride * 4);
  TURNOUT_TILE_LOAD(1, from + 16, stride * 4);
  if (!both) return;
  TURNOUT_TILE_LOAD(2, from + 16 * stride, stride * 4);
  TURNOUT_TILE_LOAD(3, from + 16 * stride + 16, stride * 4);
}
static inline void put_sums(float* to, int64_t stride, bool both) {
  TURNOUT_TILE_STORE(0, to, stride * 4);
  TURNOUT_TILE_STORE(1, to + 16, stride * 4);
  if (both) {
    TURNOUT_TILE_STORE(2, to + 16 * stride, stride * 4);
    TURNOUT_TILE_STORE(3, to + 16 * stride + 16, stride * 4);
  }
  asm volatile("" ::: "memory");
}

// What a thread makes of a block for a tile.
struct BlockOfTile {
  alignas(64) float scores[kTileInputs * kKeyBlock];  // of each row; then its shares in bfloat16 where these began
  alignas(64) float factors[kTileInputs];             // by which sums before it are to be multiplied

  float* row(int n) { return scores + n * kKeyBlock; }
  bf16* shares(int n) { return reinterpret_cast<bf16*>(row(n)); }
};

static inline void score(const KeyBlock& block, const QueryTile& tile, BlockOfTile& own) {
  const bool both = tile.num > 16;
  const uint8_t* panel = block.keys;
  for (int64_t j = 0; j < block.num; j += 32, panel += block.key_panel_bytes) {
    zero_sums();
    for (int64_t s = 0; s < block.key_steps; s += 16) add_bf16(tile.queries + s * 128, 64, panel + s * 128, both);
    put_sums(own.scores + j, kKeyBlock, both);
  }
}

// The greatest in each lane of `size` scores, a multiple of 32, those that the row does not see made the least there is.
static inline F16 greatest_of_row(const KeyBlock& block, const QueryTile& tile, int n, float* scores, int64_t size) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  const int64_t end = std::clamp<int64_t>(tile.ends[n] - block.first, 0, size), first = std::clamp<int64_t>(tile.firsts[n] - block.first, 0, end);
  if (first > 0) std::fill(scores, scores + first, kLeast);
  if (end < size) std::fill(scores + end, scores + size, kLeast);
  F16 low = load_f(scores), high = load_f(scores + 16);
  for (int64_t j = 32; j < size; j += 32) {
    low = greater(low, load_f(scores + j));
    high = greater(high, load_f(scores + j + 16));
  }
  return greater(low, high);
}

// Sixteen rows from row n0: their best scores, and the factors that these make.
static inline void find_bests(const KeyBlock& block, QueryTile& tile, int n0, float scale, BlockOfTile& own) {
  const int64_t size = (block.num + 31) / 32 * 32;
  alignas(64) float found[16];
  F16 greatest[16];
  for (int i = 0; i < 16; i++) greatest[i] = greatest_of_row(block, tile, n0 + i, own.row(n0 + i), size);
  store_f(found, greatest_of_each(greatest));
  for (int i = 0; i < 16; i++) {
    float& best = tile.bests[n0 + i];
    own.factors[n0 + i] = found[i] > best ? best - found[i] : 0.0f;
    best = found[i] > best ? found[i] : best;
  }
  store_f(own.factors + n0, exp2_16(mul(load_f(own.factors + n0), splat_f(scale))));
}

// A row's 2^(scale · (score - best)) in bfloat16; what is added up was not rounded yet.
static inline void share_out_row(QueryTile& tile, int n, int64_t size, float scale, BlockOfTile& own) {
  const float* scores = own.row(n);
  bf16* shares = own.shares(n);
  const F16 best = splat_f(tile.bests[n]), by = splat_f(scale);
  F16 low_sum = zero_f(), high_sum = zero_f();
  for (int64_t j = 0; j < size; j += 32) {
    const F16 low = share_exp2_16(mul(subtract(load_f(scores + j), best), by));
    const F16 high = share_exp2_16(mul(subtract(load_f(scores + j + 16), best), by));
    low_sum = add(low_sum, low);
    high_sum = add(high_sum, high);
    store_narrow(shares + j, low, high);
  }
  store_f(tile.totals + n * 16, fma(add(low_sum, high_sum), load_f(tile.totals + n * 16), splat_f(own.factors[n])));
}

static inline void weigh_values(const KeyBlock& block, QueryTile& tile, BlockOfTile& own) {
  const bool both = tile.num > 16;
  const int64_t width = block.value_panels * 32;
  const bool is_same = std::all_of(own.factors, own.factors + tile.num, [](float factor) { return factor == 1.0f; });
  for (int n = 0; n < tile.num && !is_same; n++)
    for (int64_t i = n * width; i < (n + 1) * width; i += 16) store_f(tile.sums + i, mul(load_f(tile.sums + i), splat_f(own.factors[n])));
  const uint8_t* shares = reinterpret_cast<const uint8_t*>(own.scores);
  for (int64_t p = 0; p < block.value_panels; p++) {
    const uint8_t* panel = block.values + p * block.value_panel_bytes;
    load_sums(tile.sums + p * 32, width, both);
    for (int64_t j = 0; j < block.num; j += 32) add_bf16(shares + j * 2, kKeyBlock * 4, panel + j * 64, both);
    put_sums(tile.sums + p * 32, width, both);
  }
}

// One block for a tile; `scale` is on scores before powers of two.
static void attend_block(const KeyBlock& block, QueryTile& tile, float scale) {
  static thread_local BlockOfTile own;
  take_tiles();
  score(block, tile, own);
  const int rows = tile.num > 16 ? 32 : 16;
  for (int n = 0; n < rows; n += 16) find_bests(block, tile, n, scale, own);
  for (int n = 0; n < rows; n++) share_out_row(tile, n, (block.num + 31) / 32 * 32, scale, own);
  weigh_values(block, tile, own);
  add_endless(block, tile, own.shares(0), kKeyBlock * 2);
}
#endif

}  // namespace TURNOUT_ISA
