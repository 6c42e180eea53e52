// Attention of one new token a sequence over paged keys and values.
//
// A sequence's keys are taken in stretches, each by whoever is free. A stretch's sums are in terms of its own best score; who
// finishes a head's last one puts them together, in order. So neither threads nor company change a bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "exponential.h"
#include "inputs.h"
#include "plan.h"
#include "pool.h"
#include "routed.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Heads;
using turnout::Pool;

// Keys of a stretch: two or more for a sequence of some hundred tokens, so that two threads have as much to do; of a long one
// twice as many, for memory is read faster the longer it is read in order.
constexpr int64_t kStretch = 128, kLongStretch = 256, kLong = 2048;
// From so many stretches on a unit is all heads of one: a token's keys lie side by side, and memory is read from end to end.
constexpr int64_t kManyStretches = 8;
// Of many query heads that share a key so many are one unit: the keys are then read once for each sixteen.
constexpr int64_t kHeadsOfUnit = 16;
// Query heads that share a pass over values, and pairs of vectors of such a pass: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kHeads = 4, kPairs = 2;
#else
constexpr int kHeads = 2, kPairs = 1;
#endif

// Query heads [h0, h0 + num_heads) over keys [first, first + num) of sequence b.
struct Stretch {
  int64_t b, h0, num_heads, first, num;
  // Where the sums of the first stretch of the same heads lie, and how many of them there are.
  int64_t of_heads, parts;
};

// Tokens whose keys lie one after the other, and their values.
struct Run {
  const bf16 *keys, *values;
  int64_t num;
};

// Runs [first, end); while values of one are weighed those of the one behind it are fetched, if there are some.
struct Runs {
  const Run *first, *end;
  bool fetches;
};

// Query heads [first, first + num) of a unit, which share a key: at most kHeads.
struct HeadGroup {
  int64_t first, g;
  int num;
  bool is_first;  // of those that share the key
};

// The first group of a key fetches for the others too.
static inline const bf16* ahead_of(const HeadGroup& group, const bf16* next, int64_t at) {
  return group.is_first ? next + at : nullptr;
}

struct StretchScratch {
  std::vector<Run> runs;
  std::vector<HeadGroup> groups;
  std::vector<float> scores;  // (heads, kScores)
  std::vector<float> sums;    // (heads, e): of 32 columns those in even places first
};
// With room for what is written past the last score.
constexpr int64_t kScores = kLongStretch + 16;
// How many values ahead of their use are fetched into the first cache.
constexpr int64_t kNearRows = 8;

// Where a head's key, or its value, of token j of a sequence lies.
static inline const bf16* key_of(const Heads& heads, const int64_t* table, int64_t j, int64_t g) {
  return heads.keys + ((table[j / heads.P] * heads.P + j % heads.P) * heads.G + g) * heads.d;
}
static inline const bf16* value_of(const Heads& heads, const int64_t* table, int64_t j, int64_t g) {
  return heads.values + (table[j / heads.P] * heads.P + j % heads.P) * heads.value_row + g * heads.e;
}

// A sink as a score before the scale; an infinite one is the greatest or the least there is. NaN stays NaN.
static inline float sink_of(const Heads& heads, int64_t h) {
  const float sink = widen(heads.sinks[h]) / heads.scale;
  return sink < kLowest ? kLowest : sink > -kLowest ? -kLowest : sink;
}

// Scores become 2^(scale · (score - best)), up to a whole vector, with 0 past the last; their sum, and the best.
static inline float to_shares(float* scores, int64_t num, float scale, float& best) {
  const int64_t size = ceil_div(num, 16) * 16;
  std::fill(scores + num, scores + size, -std::numeric_limits<float>::infinity());
  F16 most = load_f(scores), sum = zero_f();
  for (int64_t j = 16; j < size; j += 16) most = greater(most, load_f(scores + j));
  best = std::max(greatest_of(most), kLowest);
  for (int64_t j = 0; j < size; j += 16) {
    const F16 share = exp2_16(mul(subtract(load_f(scores + j), splat_f(best)), splat_f(scale)));
    sum = add(sum, share);
    store_f(scores + j, share);
  }
  return sum_of(sum);
}

// What is read later, unless it is fetched for other heads already: then there is no such row. Into the second level of the
// cache: what the first waits for at once is little, and once that is full the thread stands still.
static inline void fetch(const bf16* first, int64_t offset, int64_t width) {
  for (int64_t i = 0; first && i < width; i += 32) __builtin_prefetch(first + offset + i, 0, 2);
}

// And soon to be read, into the first: where there are tiles memory comes faster so (inputs.h).
template <int kRows>
static inline void fetch_near(const bf16* rows, int64_t stride, int64_t width) {
  for (int n = 0; kTiles && n < kRows; n++)
    for (int64_t i = 0; i < width; i += 32) __builtin_prefetch(rows + n * stride + i);
}

// scores (R, kScores) of `num` keys that are `stride` apart, those of up to three more behind them; `next` is read after these.
template <int R>
static void score_run(const bf16* const* queries, const bf16* keys, int64_t num, int64_t stride, const bf16* next, int64_t d,
                      float* scores) {
  for (int64_t j = 0; j < num; j += 4) {
    const bf16* rows[4];
    for (int n = 0; n < 4; n++) {
      rows[n] = keys + std::min(num - 1, j + n) * stride;
      fetch(next, (j + n) * stride, d);
    }
    if (j + 4 < num) fetch_near<4>(keys + (j + 4) * stride, stride, d);
    float sums[R * 4];
    dots<R, 4>(queries, rows, d, sums, 0);
    for (int r = 0; r < R; r++) std::memcpy(scores + r * kScores + j, sums + r * 4, 16);
  }
}

// sums (R, 32 · C, rows of `width`) += shares (R, kScores) times values from column `at` on, in rows that are `stride` apart; of 32
// columns those in even places come first. Without C: sixteen columns in their order.
template <int R, int C>
static void weigh(const Runs& runs, int64_t at, int64_t stride, const float* shares, float* sums, int64_t width) {
  constexpr int kVectors = C ? 2 * C : 1;
  F16 acc[R][kVectors];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < kVectors; c++) acc[r][c] = load_f(sums + r * width + 16 * c);
  for (const Run* run = runs.first; run < runs.end; shares += run++->num) {
    const bf16* row = run->values + at;
    const bf16* next = runs.fetches && run[1].values ? run[1].values + at : nullptr;
    for (int64_t j = 0; j < run->num; j++, row += stride) {
      F16 value[kVectors];
      fetch(next, j * stride, 16 * kVectors);
      fetch_near<1>(row + kNearRows * stride, stride, 16 * kVectors);
      for (int c = 0; c < C; c++) load_apart(row + 32 * c, value[2 * c], value[2 * c + 1]);
      if (C == 0) value[0] = load_wide(row);
      for (int r = 0; r < R; r++) {
        const F16 share = splat_f(shares[r * kScores + j]);
        for (int c = 0; c < kVectors; c++) acc[r][c] = fma(acc[r][c], share, value[c]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < kVectors; c++) store_f(sums + r * width + 16 * c, acc[r][c]);
}

// The same for R heads of any width.
template <int R>
static void weigh_runs(const Runs& runs, int64_t at, int64_t stride, const float* shares, float* sums, int64_t e) {
  int64_t i = 0;
  for (; i + 32 * kPairs <= e; i += 32 * kPairs) weigh<R, kPairs>(runs, at + i, stride, shares, sums + i, e);
  for (; i + 32 <= e; i += 32) weigh<R, 1>(runs, at + i, stride, shares, sums + i, e);
  if (i + 16 <= e) {
    weigh<R, 0>(runs, at + i, stride, shares, sums + i, e);
    i += 16;
  }
  for (const Run* run = runs.first; run < runs.end && i < e; shares += run++->num)
    for (int r = 0; r < R; r++)
      for (int64_t j = 0; j < run->num; j++)
        for (int64_t k = i; k < e; k++) sums[r * e + k] += shares[r * kScores + j] * widen(run->values[at + j * stride + k]);
}

// What the query heads of a unit have of one stretch: e sums each, in the order of `weigh`, their shares' sum, the best score.
struct Sums {
  float* memory;
  int64_t num_heads, e;
  float* of(int64_t unit) const { return memory + unit * num_heads * (e + 2); }
  float* totals(int64_t unit) const { return of(unit) + num_heads * e; }
  float* bests(int64_t unit) const { return totals(unit) + num_heads; }
};

// Sums of a head, of each 32 columns those in even places first, times `factor`, rounded and in their order.
static void round_in_order(const float* __restrict apart, int64_t e, float factor, bf16* __restrict out) {
  int64_t i = 0;
  for (; i + 32 <= e; i += 32)
    for (int n = 0; n < 16; n++) {
      out[i + 2 * n] = narrow(apart[i + n] * factor);
      out[i + 2 * n + 1] = narrow(apart[i + 16 + n] * factor);
    }
  for (; i < e; i++) out[i] = narrow(apart[i] * factor);
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
    round_in_order(whole, e, 1.0f / total, out + h * e);
  }
}

// Where the tokens of a stretch lie, behind them what is read after it, and which of its query heads go together.
static void lay_out(const Heads& heads, const Stretch& own, const int64_t* table, const bf16* after, StretchScratch& scratch) {
  const int64_t Q = heads.H / heads.G;
  scratch.runs.clear();
  scratch.groups.clear();
  for (int64_t j = 0; j < own.num;) {
    const int64_t place = own.first + j, num = std::min(own.num - j, heads.P - place % heads.P);
    scratch.runs.push_back({key_of(heads, table, place, 0), value_of(heads, table, place, 0), num});
    j += num;
  }
  scratch.runs.push_back({nullptr, after, 0});
  for (int64_t h = 0; h < own.num_heads;) {
    const int64_t left = std::min(own.num_heads - h, Q - (own.h0 + h) % Q);
    const bool is_first = h == 0 || (own.h0 + h) % Q == 0;
    scratch.groups.push_back({h, (own.h0 + h) / Q, static_cast<int>(std::min<int64_t>(kHeads, left)), is_first});
    h += scratch.groups.back().num;
  }
}

template <int R>
static void score_group(const Heads& heads, const HeadGroup& group, const Run& run, const bf16* next, const bf16* q, float* scores) {
  const bf16* queries[R];
  for (int r = 0; r < R; r++) queries[r] = q + (group.first + r) * heads.d;
  const int64_t at = group.g * heads.d;
  score_run<R>(queries, run.keys + at, run.num, heads.G * heads.d, ahead_of(group, next, at), heads.d, scores + group.first * kScores);
}

template <int R>
static void weigh_group(const Heads& heads, const HeadGroup& group, const Runs& runs, const float* shares, float* sums) {
  weigh_runs<R>(runs, group.g * heads.e, heads.value_row, shares + group.first * kScores, sums + group.first * heads.e, heads.e);
}

// Of a stretch's first run, before which nothing is read that could fetch it.
static void fetch_keys(const Heads& heads, const HeadGroup& group, const Run& run) {
  for (int64_t j = 0; group.is_first && j < run.num; j++) fetch(run.keys, (j * heads.G + group.g) * heads.d, heads.d);
}

#define TURNOUT_UPTO4(CALL, num, ...)       \
  switch (num) {                            \
    case 1: CALL<1>(__VA_ARGS__); break;    \
    case 2: CALL<2>(__VA_ARGS__); break;    \
    case 3: CALL<3>(__VA_ARGS__); break;    \
    case 4: CALL<4>(__VA_ARGS__); break;    \
  }

// One stretch: `q` (heads, d) of its sequence's token. Run by run for all heads, for so they lie. `after` is read next, if it is known.
static void attend_stretch(const Heads& heads, const Stretch& own, const bf16* q, const int64_t* table, const bf16* after,
                           const Sums& sums, int64_t unit) {
  static thread_local StretchScratch scratch;
  const int64_t e = heads.e;
  lay_out(heads, own, table, after, scratch);
  for (const HeadGroup& group : scratch.groups) fetch_keys(heads, group, scratch.runs[0]);
  scratch.scores.resize(own.num_heads * kScores);
  scratch.sums.assign(own.num_heads * e, 0.0f);
  const std::vector<Run>& runs = scratch.runs;
  float *scores = scratch.scores.data(), *apart = scratch.sums.data();
  const int64_t last = static_cast<int64_t>(runs.size()) - 2;
  for (int64_t i = 0, j = 0; i <= last; j += runs[i++].num)
    for (const HeadGroup& group : scratch.groups)
      TURNOUT_UPTO4(score_group, group.num, heads, group, runs[i], i < last ? runs[i + 1].keys : runs[0].values, q, scores + j)
  for (int64_t h = 0; h < own.num_heads; h++)
    sums.totals(unit)[h] = to_shares(scores + h * kScores, own.num, heads.scale * kLog2e, sums.bests(unit)[h]);
  // Of a single key-value head all runs in one go: its sums then stay in registers.
  const int64_t some = scratch.groups.back().g > scratch.groups[0].g ? 1 : last + 1;
  for (int64_t i = 0, j = 0; i <= last; j += runs[i].num, i += some)
    for (const HeadGroup& group : scratch.groups) {
      const Runs own_runs{&runs[i], &runs[i] + some, group.is_first};
      TURNOUT_UPTO4(weigh_group, group.num, heads, group, own_runs, scores + j, apart)
    }
  std::copy_n(apart, own.num_heads * e, sums.of(unit));
}

// The units of all sequences; those of the same heads of one stand together.
static void stretches_of(const Heads& heads, const int64_t* lengths, int64_t B, std::vector<Stretch>& stretches) {
  const int64_t Q = heads.H / heads.G, deals = ceil_div(Q, kHeadsOfUnit);
  stretches.clear();
  const auto seen_by = [&](int64_t b) { return heads.window ? std::min(lengths[b], heads.window) : lengths[b]; };
  int64_t all = 0;
  for (int64_t b = 0; b < B; b++) all += ceil_div(seen_by(b), kStretch);
  const bool together = deals == 1 && all >= kManyStretches;
  for (int64_t b = 0; b < B; b++) {
    const int64_t seen = seen_by(b), first = lengths[b] - seen, size = seen < kLong ? kStretch : kLongStretch;
    const int64_t parts = ceil_div(seen, size);
    for (int64_t deal = 0; deal < (together ? 1 : heads.G * deals); deal++) {
      const int64_t g = deal / deals, h0 = together ? 0 : g * Q + Q * (deal % deals) / deals;
      const int64_t end = together ? heads.H : g * Q + Q * (deal % deals + 1) / deals;
      const int64_t before = static_cast<int64_t>(stretches.size());
      for (int64_t p = 0; p < parts; p++)
        stretches.push_back({b, h0, end - h0, first + p * size, std::min(size, seen - p * size), before, parts});
    }
  }
}

// out (B, H, e): of each sequence the query heads of one token, `q_stride` from one sequence to the next.
static void attend(const Heads& heads, const bf16* q, int64_t q_stride, const int64_t* tables, const int64_t* lengths,
                   bf16* out, int64_t B, int64_t M) {
  static thread_local std::vector<Stretch> stretches;
  static thread_local std::vector<float> memory;
  static thread_local std::vector<int> done;
  stretches_of(heads, lengths, B, stretches);
  int64_t most_heads = 0;
  for (const Stretch& own : stretches) most_heads = std::max(most_heads, own.num_heads);
  memory.resize(stretches.size() * most_heads * (heads.e + 2));
  done.assign(stretches.size(), 0);
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  const Stretch* own_stretches = stretches.data();
  int* own_done = done.data();
  const Sums sums{memory.data(), most_heads, heads.e};
  const int64_t num_units = static_cast<int64_t>(stretches.size());
  // A stretch's first keys are fetched with the last values before it where both lie alike.
  const bool like = heads.d == heads.e && heads.value_row == heads.G * heads.d;
  Pool::instance().run(num_units, [&](int64_t unit) {
    const Stretch& own = own_stretches[unit];
    const Stretch* following = unit + 1 < num_units && own.num_heads == heads.H ? &own + 1 : nullptr;
    const bf16* after = following && like ? key_of(heads, tables + following->b * M, following->first, 0) : nullptr;
    attend_stretch(heads, own, q + own.b * q_stride + own.h0 * heads.d, tables + own.b * M, after, sums, unit);
    if (__atomic_add_fetch(own_done + own.of_heads, 1, __ATOMIC_ACQ_REL) == own.parts)
      put_together(heads, sums, own, out + (own.b * heads.H + own.h0) * heads.e);
  });
}

}  // namespace TURNOUT_ISA
