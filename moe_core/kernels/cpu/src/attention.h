// Attention of one new token a sequence over paged keys and values.
//
// A sequence's keys are taken in stretches, each by whoever is free. A stretch's sums are in terms of its own best score; who
// finishes a head's last one puts them together, in order. So neither threads nor company change a bit. Rows of the cache hold
// all heads: where there is work for all threads, one of them takes all heads of a stretch, and reads memory from end to end.
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
constexpr int64_t kAhead = 8;
// Keys, and values, that all heads of a unit take before any of them goes on: they are in the nearest cache meanwhile.
constexpr int64_t kTogether = 8;
// From so many stretches on a unit has all heads of one.
constexpr int64_t kManyStretches = 8;
// Query heads that share a pass over values, and columns of 16 of such a pass: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kHeads = 4, kColumns = 4;
#else
constexpr int kHeads = 2, kColumns = 2;
#endif

// Query heads [h0, h0 + num_heads) over keys [first, first + num) of sequence b.
struct Stretch {
  int64_t b, h0, num_heads, first, num;
  // Where the sums of the first stretch of the same heads lie, how many of them there are, and how far apart.
  int64_t of_heads, parts, apart;
};

struct StretchScratch {
  std::vector<int64_t> slots;  // (S,): where its keys and values lie; the last one again for whoever looks ahead
  std::vector<float> scores;   // (heads, S)
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

// Blocks lie apart, and one head's part of a row from the next row's, which no processor foresees.
static inline void fetch(const bf16* row, int64_t width) {
  for (int64_t i = 0; i < width; i += 32) __builtin_prefetch(row + i, 0, 3);
}

// Rows of the cache, `stride` apart, of which a head's part begins at `first`.
struct Rows {
  const bf16* first;
  int64_t stride;
  const int64_t* slots;
  const bf16* operator[](int64_t j) const { return first + slots[j] * stride; }
  const bf16* ahead(int64_t j) const { return first + slots[j + kAhead] * stride; }
};

// sums (R, 16 · C, rows of `width`) += shares (R, rows of `stride`) times `num` rows of values, from column `i` on.
template <int R, int C>
static void weigh(const Rows& values, int64_t i, int64_t num, const float* shares, int64_t stride, float* sums, int64_t width) {
  F16 acc[R][C];
  each<R>([&](auto r) TURNOUT_INLINE {
    each<C>([&](auto c) TURNOUT_INLINE { acc[r][c] = load_f(sums + r * width + 16 * c); });
  });
  for (int64_t j = 0; j < num; j++) {
    const bf16* row = values[j] + i;
    fetch(values.ahead(j) + i, 16 * C);
    F16 value[C];
    each<C>([&](auto c) TURNOUT_INLINE { value[c] = load_wide(row + 16 * c); });
    each<R>([&](auto r) TURNOUT_INLINE {
      const F16 share = splat_f(shares[r * stride + j]);
      each<C>([&](auto c) TURNOUT_INLINE { acc[r][c] = fma(acc[r][c], share, value[c]); });
    });
  }
  each<R>([&](auto r) TURNOUT_INLINE {
    each<C>([&](auto c) TURNOUT_INLINE { store_f(sums + r * width + 16 * c, acc[r][c]); });
  });
}

// The same for R heads and any width: sums (R, d).
template <int R>
static void weigh_heads(const Rows& values, int64_t num, const float* shares, int64_t stride, float* sums, int64_t d) {
  int64_t i = 0;
  for (; i + 16 * kColumns <= d; i += 16 * kColumns) weigh<R, kColumns>(values, i, num, shares, stride, sums + i, d);
  for (; i + 16 <= d; i += 16) weigh<R, 1>(values, i, num, shares, stride, sums + i, d);
  for (; i < d; i++)
    for (int r = 0; r < R; r++)
      for (int64_t j = 0; j < num; j++) sums[r * d + i] += shares[r * stride + j] * widen(values[j][i]);
}

static void weigh_upto4(int num_heads, const Rows& values, int64_t num, const float* shares, int64_t stride, float* sums,
                        int64_t d) {
  switch (num_heads) {
    case 1: return weigh_heads<1>(values, num, shares, stride, sums, d);
    case 2: return weigh_heads<2>(values, num, shares, stride, sums, d);
    case 3: return weigh_heads<3>(values, num, shares, stride, sums, d);
    case 4: return weigh_heads<4>(values, num, shares, stride, sums, d);
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

// scores (num_rows, rows of `stride`) of `num` keys.
static void scores_of(const bf16* const* rows, int num_rows, const Rows& keys, int64_t num, int64_t d, float* scores,
                      int64_t stride) {
  for (int64_t j = 0; j < num; j += 4) {
    const int some = static_cast<int>(std::min<int64_t>(4, num - j));
    const bf16* inputs[4];
    for (int n = 0; n < some; n++) {
      inputs[n] = keys[j + n];
      fetch(keys.ahead(j + n), d);
    }
    float sums[16];
    dots_upto4(num_rows, rows, some, inputs, d, sums, 0);
    for (int r = 0; r < num_rows; r++)
      for (int n = 0; n < some; n++) scores[r * stride + j + n] = sums[r * some + n];
  }
}

// Puts the stretches of the same heads together: out (heads, e).
static void put_together(const Heads& heads, const Sums& sums, const Stretch& own, bf16* out) {
  const int64_t e = sums.e, first = own.of_heads;
  for (int64_t h = 0; h < own.num_heads; h++) {
    float best = sums.bests(first)[h], total = 0.0f;
    for (int64_t p = 1; p < own.parts; p++) best = std::max(best, sums.bests(first + p * own.apart)[h]);
    if (heads.sinks) {
      const float sink = sink_of(heads, own.h0 + h);
      best = std::max(best, sink);
      total = exp_((sink - best) * heads.scale);
    }
    float* __restrict whole = sums.of(first) + h * e;
    for (int64_t p = 0; p < own.parts; p++) {
      const int64_t part = first + p * own.apart;
      const float* __restrict more = sums.of(part) + h * e;
      const float factor = exp_((sums.bests(part)[h] - best) * heads.scale);
      total += factor * sums.totals(part)[h];
      if (p == 0)
        for (int64_t i = 0; i < e; i++) whole[i] *= factor;
      else
        for (int64_t i = 0; i < e; i++) whole[i] += factor * more[i];
    }
    const float factor = 1.0f / total;
    for (int64_t i = 0; i < e; i++) out[h * e + i] = narrow(whole[i] * factor);
  }
}

// Calls take(stretch, its number, query heads from h on, how many) for up to kHeads heads at a time.
template <class Take>
static void for_heads(const Stretch* own, int64_t num_stretches, const Take& take) {
  for (int64_t i = 0; i < num_stretches; i++)
    for (int64_t h = 0; h < own[i].num_heads; h += kHeads)
      take(own[i], i, h, static_cast<int>(std::min<int64_t>(kHeads, own[i].num_heads - h)));
}

// Asks for the first rows of a stretch, `width` values of each.
static void fetch_first(const Rows& rows, int64_t num, int64_t width) {
  for (int64_t j = 0; j < std::min(kAhead, num); j++) fetch(rows[j], width);
}

// Calls take(j, num) for a few rows at a time.
template <class Take>
static void together(int64_t num, const Take& take) {
  for (int64_t j = 0; j < num; j += kTogether) take(j, std::min(kTogether, num - j));
}

// The stretches of several heads over the same keys: `q` (H, d) of their sequence's token.
static void attend_stretches(const Heads& heads, const Stretch* own, int64_t num_stretches, const bf16* q,
                             const int64_t* table, const Sums& sums, int64_t unit) {
  static thread_local StretchScratch scratch;
  const int64_t Q = heads.H / heads.G, g0 = own[0].h0 / Q, num_g = own[num_stretches - 1].h0 / Q + 1 - g0;
  const int64_t num = own[0].num, h0 = own[0].h0, d = heads.d, e = heads.e;
  scratch.slots.resize(num + kAhead);
  for (int64_t j = 0; j < num;) {
    const int64_t place = own[0].first + j, within = place % heads.P, end = std::min(num, j + heads.P - within);
    for (int64_t slot = table[place / heads.P] * heads.P + within; j < end; j++, slot++) scratch.slots[j] = slot;
  }
  std::fill_n(scratch.slots.begin() + num, kAhead, scratch.slots[num - 1]);
  scratch.scores.resize((own[num_stretches - 1].h0 + own[num_stretches - 1].num_heads - h0) * num);
  const int64_t* slots = scratch.slots.data();
  auto scores = [&](const Stretch& one, int64_t h) { return scratch.scores.data() + (one.h0 + h - h0) * num; };
  const Rows keys{heads.keys + g0 * d, heads.G * d, slots}, values{heads.values + g0 * e, heads.value_row, slots};
  fetch_first(keys, num, num_g * d);
  together(num, [&](int64_t j, int64_t some_keys) {
    for_heads(own, num_stretches, [&](const Stretch& one, int64_t, int64_t h, int some) {
      const bf16* rows[kHeads];
      for (int r = 0; r < some; r++) rows[r] = q + (one.h0 + h + r) * d;
      scores_of(rows, some, {keys.first + (one.h0 / Q - g0) * d, keys.stride, slots + j}, some_keys, d, scores(one, h) + j, num);
    });
  });
  fetch_first(values, num, num_g * e);
  for_heads(own, num_stretches, [&](const Stretch& one, int64_t i, int64_t h, int some) {
    std::fill_n(sums.of(unit + i) + h * e, some * e, 0.0f);
    for (int64_t r = h; r < h + some; r++) {
      const float best = sums.bests(unit + i)[r] = greatest(scores(one, r), num);
      sums.totals(unit + i)[r] = to_shares(scores(one, r), num, best, heads.scale);
    }
  });
  together(num, [&](int64_t j, int64_t some_values) {
    for_heads(own, num_stretches, [&](const Stretch& one, int64_t i, int64_t h, int some) {
      const Rows rows{values.first + (one.h0 / Q - g0) * e, values.stride, slots + j};
      weigh_upto4(some, rows, some_values, scores(one, h) + j, num, sums.of(unit + i) + h * e, e);
    });
  });
}

// out (B, H, e): of each sequence the query heads of one token, `q_stride` from one sequence to the next.
static void attend(const Heads& heads, const bf16* q, int64_t q_stride, const int64_t* tables, const int64_t* lengths,
                   bf16* out, int64_t B, int64_t M) {
  static thread_local std::vector<Stretch> stretches;
  static thread_local std::vector<float> memory;
  static thread_local std::vector<int> done;
  const int64_t Q = heads.H / heads.G, deals = ceil_div(Q, kHeadsOfUnit), sets = heads.G * deals;
  stretches.clear();
  for (int64_t b = 0; b < B; b++) {
    const int64_t first = heads.window ? std::max<int64_t>(0, lengths[b] - heads.window) : 0, seen = lengths[b] - first;
    const int64_t parts = ceil_div(seen, kStretch), before = static_cast<int64_t>(stretches.size());
    for (int64_t p = 0; p < parts; p++)
      for (int64_t set = 0; set < sets; set++) {
        const int64_t g = set / deals, h0 = Q * (set % deals) / deals, end = Q * (set % deals + 1) / deals;
        stretches.push_back({b, g * Q + h0, end - h0, first + p * kStretch, std::min(kStretch, seen - p * kStretch),
                             before + set, parts, sets});
      }
  }
  const int64_t most_heads = ceil_div(Q, deals), num_stretches = static_cast<int64_t>(stretches.size());
  const int64_t of_unit = num_stretches / sets < kManyStretches ? 1 : sets;
  memory.resize(num_stretches * most_heads * (heads.e + 2));
  done.assign(num_stretches, 0);
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  const Stretch* own_stretches = stretches.data();
  int* own_done = done.data();
  const Sums sums{memory.data(), most_heads, heads.e};
  Pool::instance().run(num_stretches / of_unit, [&](int64_t unit) {
    const int64_t first = unit * of_unit, b = own_stretches[first].b;
    attend_stretches(heads, own_stretches + first, of_unit, q + b * q_stride, tables + b * M, sums, first);
    for (int64_t i = first; i < first + of_unit; i++) {
      const Stretch& own = own_stretches[i];
      if (__atomic_add_fetch(own_done + own.of_heads, 1, __ATOMIC_ACQ_REL) == own.parts)
        put_together(heads, sums, own, out + (b * heads.H + own.h0) * heads.e);
    }
  });
}

}  // namespace TURNOUT_ISA
