// Attention of up to kInputs queries over a block of keys in vectors.
#pragma once
#include <limits>

#include "attention_tile.h"

namespace TURNOUT_ISA {

#if !defined(TURNOUT_TILE_ZERO)
// Row n of a tile, of which nothing has been attended to but its sink, where there is one.
static void begin_row(QueryTile& tile, int n, const bf16* query, int64_t d, const float* sink) {
  for (int64_t i = 0; i < d; i += 2) std::memcpy(tile.queries + (i / 2 * tile.num + n) * 4, query + i, i + 1 < d ? 4 : 2);
  tile.totals[n] = sink ? 1.0f : 0.0f;
  tile.bests[n] = sink ? *sink : kLowest;
}
static inline float total_of(const QueryTile& tile, int n) { return tile.totals[n]; }

template <int N>
static void score_panel(const uint8_t* panel, int64_t steps, const uint8_t* queries, float* out) {
  F16 acc[N][2];
  each<N>([&](auto n) TURNOUT_INLINE { acc[n][0] = acc[n][1] = zero_f(); });
  for (int64_t s = 0; s < steps; s++, panel += 128, queries += N * 4) {
    const I16 a = load_words(panel), b = load_words(panel + 64);
    each<N>([&](auto n) TURNOUT_INLINE {
      const uint32_t both = load32(queries + n * 4);
      acc[n][0] = dot_bf16(acc[n][0], a, both);
      acc[n][1] = dot_bf16(acc[n][1], b, both);
    });
  }
  each<N>([&](auto n) TURNOUT_INLINE {
    store_f(out + n * kKeyBlock, acc[n][0]);
    store_f(out + n * kKeyBlock + 16, acc[n][1]);
  });
}

// sums (N, 32) of `stride` = themselves times a factor, plus shares (N, kKeyBlock) times two keys' values a step.
template <int N>
static void add_value_panel(const uint8_t* panel, int64_t steps, const bf16* shares, const float* factors, float* sums,
                            int64_t stride) {
  F16 acc[N][2];
  each<N>([&](auto n) TURNOUT_INLINE {
    acc[n][0] = mul(load_f(sums + n * stride), splat_f(factors[n]));
    acc[n][1] = mul(load_f(sums + n * stride + 16), splat_f(factors[n]));
  });
  const uint8_t* words = reinterpret_cast<const uint8_t*>(shares);
  for (int64_t s = 0; s < steps; s++, panel += 128, words += 4) {
    const I16 a = load_words(panel), b = load_words(panel + 64);
    each<N>([&](auto n) TURNOUT_INLINE {
      const uint32_t both = load32(words + n * kKeyBlock * 2);
      acc[n][0] = dot_bf16(acc[n][0], a, both);
      acc[n][1] = dot_bf16(acc[n][1], b, both);
    });
  }
  each<N>([&](auto n) TURNOUT_INLINE {
    store_f(sums + n * stride, acc[n][0]);
    store_f(sums + n * stride + 16, acc[n][1]);
  });
}

// The greatest of `size` scores, a multiple of 32, those outside [first, end) made the least there is.
static inline float best_of(float* scores, int64_t first, int64_t end, int64_t size) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  std::fill(scores, scores + first, kLeast);
  std::fill(scores + end, scores + size, kLeast);
  F16 low = load_f(scores), high = load_f(scores + 16);
  for (int64_t j = 32; j < size; j += 32) {
    low = greater(low, load_f(scores + j));
    high = greater(high, load_f(scores + j + 16));
  }
  return greatest_of(greater(low, high));
}

// 2^(scale · (score - best)) in bfloat16; their sum before the rounding.
static inline float shares_of(const float* scores, int64_t size, float best, float scale, bf16* shares) {
  const F16 most = splat_f(best), by = splat_f(scale);
  F16 sums = zero_f(), more = zero_f();
  for (int64_t j = 0; j < size; j += 32) {
    const F16 low = exp2_16(mul(subtract(load_f(scores + j), most), by));
    const F16 high = exp2_16(mul(subtract(load_f(scores + j + 16), most), by));
    sums = add(sums, low);
    more = add(more, high);
    store_narrow(shares + j, low, high);
  }
  return sum_of(add(sums, more));
}

// The shares (num, kKeyBlock) of a block's keys, and by what the sums before it are to be multiplied.
static void share_out(const KeyBlock& block, QueryTile& tile, float scale, float* scores, bf16* shares, float* factors) {
  const int64_t size = (block.num + 31) / 32 * 32;
  int64_t first[kInputs], end[kInputs];
  for (int n = 0; n < tile.num; n++) {
    first[n] = std::max<int64_t>(0, tile.firsts[n] - block.first);
    end[n] = std::min(block.num, tile.ends[n] - block.first);
    factors[n] = 0.0f;
    if (first[n] >= end[n]) continue;
    const float best = best_of(scores + n * kKeyBlock, first[n], end[n], size);
    if (best <= tile.bests[n]) continue;
    factors[n] = tile.bests[n] - best;
    tile.bests[n] = best;
  }
  store_f(factors, exp2_16(mul(load_f(factors), splat_f(scale))));
  for (int n = 0; n < tile.num; n++) {
    bf16* own = shares + n * kKeyBlock;
    if (first[n] < end[n])
      tile.totals[n] = tile.totals[n] * factors[n] + shares_of(scores + n * kKeyBlock, size, tile.bests[n], scale, own);
    else
      std::fill(own, own + size, static_cast<bf16>(0));
  }
}

template <int N>
static void attend_block(const KeyBlock& block, QueryTile& tile, float scale) {
  alignas(64) float scores[N * kKeyBlock], factors[16] = {};
  alignas(64) bf16 shares[N * kKeyBlock];
  for (int64_t j = 0; j < block.num; j += 32)
    score_panel<N>(block.keys + j / 32 * block.key_panel_bytes, block.key_steps, tile.queries, scores + j);
  share_out(block, tile, scale, scores, shares, factors);
  for (int64_t p = 0; p < block.value_panels; p++)
    add_value_panel<N>(block.values + p * block.value_panel_bytes, (block.num + 1) / 2, shares, factors, tile.sums + p * 32,
                       block.value_panels * 32);
  add_endless(block, tile, shares, kKeyBlock);
}

// One block for a tile; `scale` is on scores before powers of two.
static void attend_block(const KeyBlock& block, QueryTile& tile, float scale) {
#define TURNOUT_CASE(N) \
  case N:               \
    if constexpr (N <= kInputs) attend_block<N>(block, tile, scale); \
    break;
  switch (tile.num) {
    TURNOUT_CASE(1) TURNOUT_CASE(2) TURNOUT_CASE(3) TURNOUT_CASE(4) TURNOUT_CASE(5) TURNOUT_CASE(6)
    TURNOUT_CASE(7) TURNOUT_CASE(8) TURNOUT_CASE(9) TURNOUT_CASE(10) TURNOUT_CASE(11) TURNOUT_CASE(12)
  }
#undef TURNOUT_CASE
}

#endif

}  // namespace TURNOUT_ISA
