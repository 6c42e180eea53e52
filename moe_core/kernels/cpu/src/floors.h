// Floors of the domain prior: the least share of a gate's probability that a token's own experts get together.
#pragma once
#include <cmath>
#include <vector>

#include "scores.h"
#include "sparsemax.h"

namespace TURNOUT_ISA {

// log of the sum of the exponentials of those logits whose flag is `side`; both sides have one at least.
static double log_sum(const float* logits, const uint8_t* mine, bool side, int64_t E) {
  double top = -INFINITY, total = 0.0;
  for (int64_t e = 0; e < E; e++)
    if ((mine[e] != 0) == side && !(logits[e] <= top)) top = logits[e];
  if (std::isinf(top)) return top;
  for (int64_t e = 0; e < E; e++)
    if ((mine[e] != 0) == side) total += std::exp(logits[e] - top);
  return top + std::log(total);
}

// Whether the own experts' part of the shares, moved by so much, is below the floor.
static bool lacks(const Gate& gate, const float* logits, const uint8_t* mine, float floor, float shift, int64_t E,
                  std::vector<float>& shares) {
  shares.resize(E);
  for (int64_t e = 0; e < E; e++) shares[e] = logits[e] + (mine[e] ? shift : -shift);
  const bool is_sparse = gate.scores == turnout::kSparsemax;
  if (is_sparse) sparsemax(shares.data(), E);
  else score(gate.scores, shares.data(), E);
  double own = 0.0, total = kTiny;
  for (int64_t e = 0; e < E; e++) {
    total += shares[e];
    if (mine[e]) own += shares[e];
  }
  return (is_sparse ? own : own / total) < floor;
}

// What a floor adds to a token's own logits, and what it takes from the others.
struct FloorShift {
  float own, others;
};

// As in the router in torch (`logits.py`): a shift so far beyond the largest logit leaves nothing on the other side.
static float searched_shift(const Gate& gate, const float* logits, const uint8_t* mine, float floor, int64_t E) {
  constexpr float kLargestShift = 100.0f;
  constexpr int kHalvings = 32;
  static thread_local std::vector<float> shares;
  if (!lacks(gate, logits, mine, floor, 0.0f, E, shares)) return 0.0f;
  float low = 0.0f, largest = 0.0f;
  for (int64_t e = 0; e < E; e++)
    if (std::isfinite(logits[e])) largest = std::fmax(largest, std::fabs(logits[e]));
  float high = kLargestShift + largest;
  for (int halving = 0; halving < kHalvings; halving++) {
    const float middle = (low + high) / 2;
    (lacks(gate, logits, mine, floor, middle, E, shares) ? low : high) = middle;
  }
  return high;
}

// What one token's logits, (E), must move so that the experts flagged in `mine` have the floor's share: of a softmax they alone
// rise, all by the same amount; of other shares they rise as much as the others fall. Nothing for what has it already, and for
// what has no expert on either side, or NaN.
static FloorShift floor_shift(const Gate& gate, const float* logits, const uint8_t* mine, float floor, int64_t E) {
  bool has_own = false, has_other = false;
  for (int64_t e = 0; e < E; e++) {
    if (logits[e] != logits[e]) return {0.0f, 0.0f};
    (mine[e] ? has_own : has_other) |= std::isfinite(logits[e]);
  }
  if (!(floor > 0.0f) || !has_own || !has_other) return {0.0f, 0.0f};
  if (gate.scores == turnout::kSigmoid || gate.scores == turnout::kSqrtSoftplus || gate.scores == turnout::kSparsemax) {
    const float shift = searched_shift(gate, logits, mine, floor, E);
    return {shift, shift};
  }
  const double wanted = std::log(floor / (1.0 - floor));
  const double missing = wanted - (log_sum(logits, mine, true, E) - log_sum(logits, mine, false, E));
  return {missing > 0.0 ? static_cast<float>(missing) : 0.0f, 0.0f};
}

static void add_shift(const FloorShift& shift, const uint8_t* mine, float* logits, int64_t E) {
  if (shift.own == 0.0f) return;
  for (int64_t e = 0; e < E; e++) logits[e] += mine[e] ? shift.own : -shift.others;
}

}  // namespace TURNOUT_ISA
