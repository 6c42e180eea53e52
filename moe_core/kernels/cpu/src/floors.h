// Floors of the domain prior: the least share of a gate's probability that a token's own experts get together.
#pragma once
#include <cmath>
#include <vector>

#include "scores.h"

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
  score(gate.scores, shares.data(), E);
  double own = 0.0, total = kTiny;
  for (int64_t e = 0; e < E; e++) {
    total += shares[e];
    if (mine[e]) own += shares[e];
  }
  return own / total < floor;
}

// As in the router in torch (`logits.py`): a shift so far beyond the largest logit leaves nothing on the other side.
static void search_floor(const Gate& gate, float* logits, const uint8_t* mine, float floor, int64_t E) {
  constexpr float kLargestShift = 100.0f;
  constexpr int kHalvings = 32;
  static thread_local std::vector<float> shares;
  if (!lacks(gate, logits, mine, floor, 0.0f, E, shares)) return;
  float low = 0.0f, largest = 0.0f;
  for (int64_t e = 0; e < E; e++)
    if (std::isfinite(logits[e])) largest = std::fmax(largest, std::fabs(logits[e]));
  float high = kLargestShift + largest;
  for (int halving = 0; halving < kHalvings; halving++) {
    const float middle = (low + high) / 2;
    (lacks(gate, logits, mine, floor, middle, E, shares) ? low : high) = middle;
  }
  for (int64_t e = 0; e < E; e++) logits[e] += mine[e] ? high : -high;
}

// Moves one token's logits, (E), so that the experts flagged in `mine` have the floor's share: of a softmax they alone rise, all by
// the same amount; of other shares they rise as much as the others fall. What has it already, and what has no expert on
// either side, or NaN, stays to the bit.
static void raise_to_floor(const Gate& gate, float* logits, const uint8_t* mine, float floor, int64_t E) {
  bool has_own = false, has_other = false;
  for (int64_t e = 0; e < E; e++) {
    if (logits[e] != logits[e]) return;
    (mine[e] ? has_own : has_other) |= std::isfinite(logits[e]);
  }
  if (!(floor > 0.0f) || !has_own || !has_other) return;
  if (gate.scores == turnout::kSigmoid || gate.scores == turnout::kSqrtSoftplus)
    return search_floor(gate, logits, mine, floor, E);
  const double wanted = std::log(floor / (1.0 - floor));
  const float missing = static_cast<float>(wanted - (log_sum(logits, mine, true, E) - log_sum(logits, mine, false, E)));
  for (int64_t e = 0; missing > 0.0f && e < E; e++)
    if (mine[e]) logits[e] += missing;
}

}  // namespace TURNOUT_ISA
