// Gradients of causal attention over whole sequences in bfloat16, by products in tiles; scores, shares and sums in float32.
//
// Nothing is kept from forward: shares of keys are made again, some queries at a time, for which no key behind them is looked at.
// A key-value head of a sequence, with all query heads that read it, is the work of one thread: threads change no bit.
// Source: Dao et al. 2022, "FlashAttention", arXiv 2205.14135, algorithm 4.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "exponential.h"
#include "pool.h"
#include "products.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_TILE_ZERO)
constexpr int64_t kQueriesOfBlock = 128;

struct AttentionSpace {
  std::vector<float> scores, d_shares, d_k, d_v;
  std::vector<bf16> shares, d_scores;
  ProductSpace product;
};

// One query's row of scores and of the gradients of its shares to shares and gradients of scores; `seen` of `num` keys are seen.
static void scores_back(float* scores, float* d_shares, int64_t seen, int64_t num, float scale, bf16* shares, bf16* d_scores) {
  const F16 to_base_two = splat_f(scale * kLog2e);
  for (int64_t i = 0; i < seen; i += 16) store_f(scores + i, mul(load_f(scores + i), to_base_two));
  // Behind the scale: one below 0 would make the highest of these.
  std::fill(scores + seen, scores + num, -INFINITY);
  std::fill(d_shares + seen, d_shares + num, 0.0f);
  F16 bests = splat_f(-INFINITY);
  for (int64_t i = 0; i < num; i += 16) bests = greater(load_f(scores + i), bests);
  float lanes[16], best;
  store_f(lanes, bests);
  best = *std::max_element(lanes, lanes + 16);
  F16 sums = zero_f(), pulls = zero_f();
  for (int64_t i = 0; i < num; i += 16) {
    const F16 power = exp2_16(subtract(load_f(scores + i), splat_f(best)));
    store_f(scores + i, power);
    sums = add(sums, power);
    pulls = fma(pulls, power, load_f(d_shares + i));
  }
  const float total = folded(sums);
  const F16 share = splat_f(1.0f / total), factor = splat_f(scale / total), pull = splat_f(folded(pulls) / total);
  for (int64_t i = 0; i < num; i += 32) {
    const F16 low = load_f(scores + i), high = load_f(scores + i + 16);
    store_narrow(shares + i, mul(low, share), mul(high, share));
    store_narrow(d_scores + i, mul(mul(low, factor), subtract(load_f(d_shares + i), pull)),
                 mul(mul(high, factor), subtract(load_f(d_shares + i + 16), pull)));
  }
}

// All of (S, d); adds to d_k and d_v of the space.
static void head_back(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, bf16* d_q, int64_t S, int64_t d, float scale,
                      AttentionSpace& space) {
  Total *d_k = reinterpret_cast<Total*>(space.d_k.data()), *d_v = reinterpret_cast<Total*>(space.d_v.data());
  for (int64_t first = 0; first < S; first += kQueriesOfBlock) {
    const int64_t num = std::min(kQueriesOfBlock, S - first), keys = first + num;
    const bf16 *queries = q + first * d, *grads = d_out + first * d;
    product<false, true>(queries, k, space.scores.data(), num, keys, d, space.product);
    product<false, true>(grads, v, space.d_shares.data(), num, keys, d, space.product);
    for (int64_t i = 0; i < num; i++)
      scores_back(space.scores.data() + i * keys, space.d_shares.data() + i * keys, first + i + 1, keys, scale,
                  space.shares.data() + i * keys, space.d_scores.data() + i * keys);
    product<false, false>(space.d_scores.data(), k, d_q + first * d, num, d, keys, space.product);
    product<true, false>(space.d_scores.data(), queries, d_k, keys, d, num, space.product);
    product<true, false>(space.shares.data(), grads, d_v, keys, d, num, space.product);
  }
}

// Contiguous (B, H, S, d), keys and values (B, G, S, d); S and d whole times 32. 1, or 0 where the set has no tiles.
static int attention_back(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, bf16* d_q, bf16* d_k, bf16* d_v, float scale,
                          int64_t B, int64_t H, int64_t G, int64_t S, int64_t d) {
  const int64_t heads = H / G, size = S * d;
  turnout::Pool::instance().run(B * G, [&](int64_t unit) {
    static thread_local AttentionSpace space;
    const TilesOfUnit of_unit;
    for (auto* of_keys : {&space.scores, &space.d_shares}) of_keys->resize(std::min(S, kQueriesOfBlock) * S);
    for (auto* of_keys : {&space.shares, &space.d_scores}) of_keys->resize(std::min(S, kQueriesOfBlock) * S);
    space.d_k.assign(size, 0.0f), space.d_v.assign(size, 0.0f);
    for (int64_t head = unit * heads; head < (unit + 1) * heads; head++)
      head_back(q + head * size, k + unit * size, v + unit * size, d_out + head * size, d_q + head * size, S, d, scale, space);
    narrow_strip(space.d_k.data(), d_k + unit * size, size);
    narrow_strip(space.d_v.data(), d_v + unit * size, size);
  });
  return 1;
}
#else
static int attention_back(const bf16*, const bf16*, const bf16*, const bf16*, bf16*, bf16*, bf16*, float, int64_t, int64_t, int64_t,
                          int64_t, int64_t) {
  return 0;
}
#endif

}  // namespace TURNOUT_ISA
