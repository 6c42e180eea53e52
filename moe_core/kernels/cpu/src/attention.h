// Attention of one new token a sequence over paged keys and values.
//
// A sequence's keys are taken in stretches, each by whoever is free. A stretch's sums are in terms of its own best score; who
// finishes a head's last one puts them together, in order. So neither threads nor company change a bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "plan.h"
#include "pool.h"
#include "routed.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Heads;
using turnout::Pool;

// Keys of a stretch: two or more for a sequence of some hundred tokens, so that two threads have as much to do.
constexpr int64_t kStretch = 128;
// Of many query heads that share a key so many are one unit: the keys are then read once for each sixteen.
constexpr int64_t kHeadsOfUnit = 16;
// So many keys and values ahead are fetched into the cache.
constexpr int64_t kAhead = 24;
// Query heads that share a pass over values, and columns of 16 of such a pass: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kHeads = 4, kColumns = 4;
#else
constexpr int kHeads = 2, kColumns = 2;
#endif

// Query heads [h0, h0 + num_heads) over keys [first, first + num) of sequence b.
struct Stretch {
  int64_t b, h0, num_heads, first, num;
  // Where the sums of the first stretch of the same heads lie, and how many of them there are.
  int64_t of_heads, parts;
};

struct StretchScratch {
  std::vector<int64_t> keys, values;  // (S,): where they lie
  std::vector<float> scores;          // (heads, S)
};

// Where a head's key, or its value, of token j of a sequence lies.
static inline const bf16* key_of(const Heads& heads, const int64_t* table, int64_t j, int64_t g) {
  return heads.keys + ((table[j / heads.P] * heads.P + j % heads.P) * heads.G + g) * heads.d;
}
static inline const bf16* value_of(const Heads& heads, const int64_t* table, int64_t j, int64_t g) {
  return heads.values + (table[j / heads.P] * heads.P + j % heads.P) * heads.value_row + g * heads.e;
}

// A sink as a score before the scale.
static inline float sink_of(const Heads& heads, int64_t h) { return widen(heads.sinks[h]) / heads.scale; }

static inline float greatest(const float* x, int64_t num) {
  float best[16], all = x[0];
  std::fill(best, best + 16, x[0]);
  int64_t j = 0;
  for (; j + 16 <= num; j += 16)
    for (int lane = 0; lane < 16; lane++) best[lane] = x[j + lane] > best[lane] ? x[j + lane] : best[lane];
  for (; j < num; j++) all = x[j] > all ? x[j] : all;
  for (float one : best) all = one > all ? one : all;
  return all;
}

// Scores become exp(scale · (score - best)); returns their sum.
static inline float to_shares(float* scores, int64_t num, float best, float scale) {
  for (int64_t j = 0; j < num; j++) scores[j] = exp_((scores[j] - best) * scale);
  float sums[16] = {}, total = 0.0f;
  int64_t j = 0;
  for (; j + 16 <= num; j += 16)
    for (int lane = 0; lane < 16; lane++) sums[lane] += scores[j + lane];
  for (; j < num; j++) total += scores[j];
  for (float sum : sums) total += sum;
  return total;
}

// One head's rows lie apart in the cache, which no processor foresees.
static inline void fetch(const bf16* row, int64_t d) {
  for (int64_t i = 0; i < d; i += 32) __builtin_prefetch(row + i, 0, 3);
}

// sums (R, 16 · C, rows of `width`) = shares (R, rows of `stride`) times the values at `at`.
template <int R, int C>
static void weigh(const bf16* values, const int64_t* at, int64_t num, const float* shares, int64_t stride, float* sums,
                  int64_t width) {
  F16 acc[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) acc[r][c] = zero_f();
  for (int64_t j = 0; j < num; j++) {
    F16 value[C];
    fetch(values + at[std::min(num - 1, j + kAhead)], 16 * C);
    for (int c = 0; c < C; c++) value[c] = load_wide(values + at[j] + 16 * c);
    for (int r = 0; r < R; r++) {
      const F16 share = splat_f(shares[r * stride + j]);
      for (int c = 0; c < C; c++) acc[r][c] = fma(acc[r][c], share, value[c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store_f(sums + r * width + 16 * c, acc[r][c]);
}

// The same for R heads and any width: sums (R, d).
template <int R>
static void weigh_heads(const bf16* values, const int64_t* at, int64_t num, const float* shares, int64_t stride, float* sums,
                        int64_t d) {
  int64_t i = 0;
  for (; i + 16 * kColumns <= d; i += 16 * kColumns) weigh<R, kColumns>(values + i, at, num, shares, stride, sums + i, d);
  for (; i + 16 <= d; i += 16) weigh<R, 1>(values + i, at, num, shares, stride, sums + i, d);
  for (; i < d; i++)
    for (int r = 0; r < R; r++) {
      float sum = 0.0f;
      for (int64_t j = 0; j < num; j++) sum += shares[r * stride + j] * widen(values[at[j] + i]);
      sums[r * d + i] = sum;
    }
}

static void weigh_upto4(int num_heads, const bf16* values, const int64_t* at, int64_t num, const float* shares,
                        int64_t stride, float* sums, int64_t d) {
  switch (num_heads) {
    case 1: return weigh_heads<1>(values, at, num, shares, stride, sums, d);
    case 2: return weigh_heads<2>(values, at, num, shares, stride, sums, d);
    case 3: return weigh_heads<3>(values, at, num, shares, stride, sums, d);
    case 4: return weigh_heads<4>(values, at, num, shares, stride, sums, d);
  }
}

// What the query heads of a unit have of one stretch: e sums each, their shares' sum, the best score.
struct Sums {
  float* memory;
  int64_t num_heads, e;
  float* of(int64_t unit) const { return memory + unit * num_heads * (e + 2); }
  float* totals(int64_t unit) const { return of(unit) + num_heads * e; }
  float* bests(int64_t unit) const { return totals(unit) + num_heads; }
};

static void scores_of(const bf16* const* rows, int num_rows, const bf16* keys, const std::vector<int64_t>& at, int64_t d,
                      float* scores) {
  const int64_t num = static_cast<int64_t>(at.size());
  for (int64_t j = 0; j < num; j += 4) {
    const int some = static_cast<int>(std::min<int64_t>(4, num - j));
    const bf16* inputs[4];
    for (int n = 0; n < some; n++) {
      inputs[n] = keys + at[j + n];
      fetch(keys + at[std::min(num - 1, j + n + kAhead)], d);
    }
    float sums[16];
    dots_upto4(num_rows, rows, some, inputs, d, sums, 0);
    for (int r = 0; r < num_rows; r++)
      for (int n = 0; n < some; n++) scores[r * num + j + n] = sums[r * some + n];
  }
}

// Puts the stretches of the same heads together: out (heads, e).
static void put_together(const Heads& heads, const Sums& sums, const Stretch& own, bf16* out) {
  const int64_t e = sums.e, first = own.of_heads;
  for (int64_t h = 0; h < own.num_heads; h++) {
    float best = sums.bests(first)[h], total = 0.0f;
    for (int64_t p = 1; p < own.parts; p++) best = std::max(best, sums.bests(first + p)[h]);
    if (heads.sinks) {
      const float sink = sink_of(heads, own.h0 + h);
      best = std::max(best, sink);
      total = exp_((sink - best) * heads.scale);
    }
    float* __restrict whole = sums.of(first) + h * e;
    for (int64_t p = 0; p < own.parts; p++) {
      const float* __restrict more = sums.of(first + p) + h * e;
      const float factor = exp_((sums.bests(first + p)[h] - best) * heads.scale);
      total += factor * sums.totals(first + p)[h];
      if (p == 0)
        for (int64_t i = 0; i < e; i++) whole[i] *= factor;
      else
        for (int64_t i = 0; i < e; i++) whole[i] += factor * more[i];
    }
    const float factor = 1.0f / total;
    for (int64_t i = 0; i < e; i++) out[h * e + i] = narrow(whole[i] * factor);
  }
}

// One stretch: `q` (heads, d) of its sequence's token.
static void attend_stretch(const Heads& heads, const Stretch& own, const bf16* q, const int64_t* table, const Sums& sums,
                           int64_t unit) {
  static thread_local StretchScratch scratch;
  const int64_t g = own.h0 / (heads.H / heads.G);
  scratch.keys.resize(own.num);
  scratch.values.resize(own.num);
  for (int64_t j = 0; j < own.num;) {
    const int64_t place = own.first + j, within = place % heads.P, end = std::min(own.num, j + heads.P - within);
    int64_t slot = table[place / heads.P] * heads.P + within;
    for (; j < end; j++, slot++) {
      scratch.keys[j] = (slot * heads.G + g) * heads.d;
      scratch.values[j] = slot * heads.value_row + g * heads.e;
    }
  }
  scratch.scores.resize(kHeads * own.num);
  float* scores = scratch.scores.data();
  for (int64_t h = 0; h < own.num_heads; h += kHeads) {
    const int some = static_cast<int>(std::min<int64_t>(kHeads, own.num_heads - h));
    const bf16* rows[kHeads];
    for (int r = 0; r < some; r++) rows[r] = q + (h + r) * heads.d;
    scores_of(rows, some, heads.keys, scratch.keys, heads.d, scores);
    for (int r = 0; r < some; r++) {
      const float best = sums.bests(unit)[h + r] = greatest(scores + r * own.num, own.num);
      sums.totals(unit)[h + r] = to_shares(scores + r * own.num, own.num, best, heads.scale);
    }
    weigh_upto4(some, heads.values, scratch.values.data(), own.num, scores, own.num, sums.of(unit) + h * heads.e, heads.e);
  }
}

// out (B, H, e): of each sequence the query heads of one token, `q_stride` from one sequence to the next.
static void attend(const Heads& heads, const bf16* q, int64_t q_stride, const int64_t* tables, const int64_t* lengths,
                   bf16* out, int64_t B, int64_t M) {
  static thread_local std::vector<Stretch> stretches;
  static thread_local std::vector<float> memory;
  static thread_local std::vector<int> done;
  const int64_t Q = heads.H / heads.G, deals = ceil_div(Q, kHeadsOfUnit);
  stretches.clear();
  for (int64_t b = 0; b < B; b++) {
    const int64_t first = heads.window ? std::max<int64_t>(0, lengths[b] - heads.window) : 0, seen = lengths[b] - first;
    const int64_t parts = ceil_div(seen, kStretch);
    for (int64_t deal = 0; deal < heads.G * deals; deal++) {
      const int64_t g = deal / deals, h0 = Q * (deal % deals) / deals, end = Q * (deal % deals + 1) / deals;
      const int64_t before = static_cast<int64_t>(stretches.size());
      for (int64_t p = 0; p < parts; p++)
        stretches.push_back(
            {b, g * Q + h0, end - h0, first + p * kStretch, std::min(kStretch, seen - p * kStretch), before, parts});
    }
  }
  const int64_t most_heads = ceil_div(Q, deals);
  memory.resize(stretches.size() * most_heads * (heads.e + 2));
  done.assign(stretches.size(), 0);
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  const Stretch* own_stretches = stretches.data();
  int* own_done = done.data();
  const Sums sums{memory.data(), most_heads, heads.e};
  Pool::instance().run(static_cast<int64_t>(stretches.size()), [&](int64_t unit) {
    const Stretch& own = own_stretches[unit];
    attend_stretch(heads, own, q + own.b * q_stride + own.h0 * heads.d, tables + own.b * M, sums, unit);
    if (__atomic_add_fetch(own_done + own.of_heads, 1, __ATOMIC_ACQ_REL) == own.parts)
      put_together(heads, sums, own, out + (own.b * heads.H + own.h0) * heads.e);
  });
}

}  // namespace TURNOUT_ISA
