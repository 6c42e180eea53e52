// Attention of one new token a sequence over paged keys and values.
//
// A sequence's keys are taken in stretches, each by whoever is free. A stretch's sums are in terms of its own best score; who
// finishes a head's last one puts them together, in order. So neither threads nor company change a bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"
#include "routed.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Pool;

// Keys of a stretch: two or more for a sequence of some hundred tokens, so that two threads have as much to do.
constexpr int64_t kStretch = 128;
// So many keys and values ahead are fetched into the cache.
constexpr int64_t kAhead = 24;
// Query heads that share a pass over values, and columns of 16 of such a pass: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kHeads = 4, kColumns = 4;
#else
constexpr int kHeads = 2, kColumns = 2;
#endif

struct Stretch {
  int64_t b, g, first, num;
  // Where the sums of the first stretch of the same head lie, and how many of them there are.
  int64_t of_head, parts;
};

struct StretchScratch {
  std::vector<int64_t> at;    // (S,): where a key of this head lies
  std::vector<float> scores;  // (Q, S)
};

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

// What a query head has of one stretch: d sums, their shares' sum, the best score.
struct Sums {
  float* memory;
  int64_t Q, d;
  float* of(int64_t stretch) const { return memory + stretch * Q * (d + 2); }
  float* totals(int64_t stretch) const { return of(stretch) + Q * d; }
  float* bests(int64_t stretch) const { return totals(stretch) + Q; }
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

// Puts the stretches of one key-value head together: out (Q, d).
static void put_together(const Sums& sums, int64_t first, int64_t parts, float scale, bf16* out) {
  const int64_t d = sums.d;
  for (int64_t h = 0; h < sums.Q; h++) {
    float best = sums.bests(first)[h], total = 0.0f;
    for (int64_t p = 1; p < parts; p++) best = std::max(best, sums.bests(first + p)[h]);
    float* __restrict whole = sums.of(first) + h * d;
    for (int64_t p = 0; p < parts; p++) {
      const float* __restrict more = sums.of(first + p) + h * d;
      const float factor = exp_((sums.bests(first + p)[h] - best) * scale);
      total += factor * sums.totals(first + p)[h];
      if (p == 0)
        for (int64_t i = 0; i < d; i++) whole[i] *= factor;
      else
        for (int64_t i = 0; i < d; i++) whole[i] += factor * more[i];
    }
    const float factor = 1.0f / total;
    for (int64_t i = 0; i < d; i++) out[h * d + i] = narrow(whole[i] * factor);
  }
}

static void attend(const bf16* q, int64_t q_stride, const bf16* keys, const bf16* values, const int64_t* tables,
                   const int64_t* lengths, bf16* out, int64_t B, int64_t H, int64_t G, int64_t d, int64_t M, int64_t P,
                   float scale) {
  static thread_local std::vector<Stretch> stretches;
  static thread_local std::vector<float> memory;
  static thread_local std::vector<int> done;
  const int64_t Q = H / G, step = G * d;
  stretches.clear();
  for (int64_t b = 0; b < B; b++) {
    const int64_t parts = ceil_div(lengths[b], kStretch), before = static_cast<int64_t>(stretches.size());
    for (int64_t g = 0; g < G; g++)
      for (int64_t p = 0; p < parts; p++)
        stretches.push_back({b, g, p * kStretch, std::min(kStretch, lengths[b] - p * kStretch), before + g * parts, parts});
  }
  memory.resize(stretches.size() * Q * (d + 2));
  done.assign(stretches.size(), 0);
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  const Stretch* own_stretches = stretches.data();
  int* own_done = done.data();
  const Sums sums{memory.data(), Q, d};
  Pool::instance().run(static_cast<int64_t>(stretches.size()), [&](int64_t unit) {
    static thread_local StretchScratch scratch;
    const Stretch& own = own_stretches[unit];
    const int64_t* table = tables + own.b * M;
    scratch.at.resize(own.num);
    for (int64_t j = 0; j < own.num;) {
      const int64_t place = own.first + j, within = place % P, end = std::min(own.num, j + P - within);
      int64_t slot = table[place / P] * P + within;
      for (; j < end; j++) scratch.at[j] = slot++ * step + own.g * d;
    }
    scratch.scores.resize(Q * own.num);
    for (int64_t h = 0; h < Q; h += kHeads) {
      const int some = static_cast<int>(std::min<int64_t>(kHeads, Q - h));
      const bf16* rows[kHeads];
      for (int r = 0; r < some; r++) rows[r] = q + own.b * q_stride + (own.g * Q + h + r) * d;
      float* scores = scratch.scores.data() + h * own.num;
      scores_of(rows, some, keys, scratch.at, d, scores);
      for (int r = 0; r < some; r++) {
        const float best = sums.bests(unit)[h + r] = greatest(scores + r * own.num, own.num);
        sums.totals(unit)[h + r] = to_shares(scores + r * own.num, own.num, best, scale);
      }
      weigh_upto4(some, values, scratch.at.data(), own.num, scores, own.num, sums.of(unit) + h * d, d);
    }
    if (__atomic_add_fetch(own_done + own.of_head, 1, __ATOMIC_ACQ_REL) == own.parts)
      put_together(sums, own.of_head, own.parts, scale, out + (own.b * H + own.g * Q) * d);
  });
}

}  // namespace TURNOUT_ISA
