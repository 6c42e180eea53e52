// What a gate makes of a token's logits.
#pragma once
#include <cmath>
#include <cstdint>

#include "plan.h"

namespace TURNOUT_ISA {

using turnout::Gate;

// Keeps 0 / 0 from being NaN where every score has underflowed.
constexpr float kTiny = 1e-20f;

// Makes scores of one token's logits, (E), in place.
static void score(int32_t kind, float* logits, int64_t E) {
  if (kind == turnout::kSigmoid) {
    for (int64_t e = 0; e < E; e++) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  } else if (kind == turnout::kSqrtSoftplus) {
    // Far down the root of a softplus is an exponential; far up, the root of its argument.
    for (int64_t e = 0; e < E; e++) {
      const float x = logits[e];
      logits[e] = x < -20.0f ? std::exp(x / 2) : std::sqrt(x > 20.0f ? x : std::log1p(std::exp(x)));
    }
  } else {
    float top = logits[0], total = 0.0f;
    for (int64_t e = 1; e < E; e++) top = logits[e] > top ? logits[e] : top;
    for (int64_t e = 0; e < E; e++) total += logits[e] = std::exp(logits[e] - top);
    for (int64_t e = 0; e < E; e++) logits[e] /= total;
  }
}

}  // namespace TURNOUT_ISA
