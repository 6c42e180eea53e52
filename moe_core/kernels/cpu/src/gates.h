// Gates: a token's logits over the experts, and from them its choice.
#pragma once
#include <cmath>
#include <vector>

#include "mixture.h"

namespace TURNOUT_ISA {

using turnout::Gate;

static float dot_float(const float* w, const bf16* x, int64_t length) {
  float sums[16] = {}, total = 0.0f;
  int64_t i = 0;
  for (; i + 16 <= length; i += 16)
    for (int lane = 0; lane < 16; lane++) sums[lane] += w[i + lane] * widen(x[i + lane]);
  for (; i < length; i++) total += w[i] * widen(x[i]);
  for (float sum : sums) total += sum;
  return total;
}

// logits (T, E) of the router's map, its bias and the temperature with it.
static void router_logits(const Gate& gate, const bf16* x, float* logits, int64_t T, int64_t E, int64_t D) {
  // Four experts a unit; a map that is no more than a few microseconds is not worth a hand-over.
  constexpr int64_t kOfUnit = 4, kShared = 1 << 18;
  const int64_t units = ceil_div(E, kOfUnit);
  auto work = [&](int64_t unit) {
    for (int64_t t = 0; t < T; t++)
      for (int64_t e = unit * kOfUnit; e < std::min(E, (unit + 1) * kOfUnit); e++) {
        float logit = dot_float(gate.router + e * D, x + t * D, D);
        if (gate.bias) logit += gate.bias[e];
        logits[t * E + e] = gate.temperature == 1.0f ? logit : logit / gate.temperature;
      }
  };
  if (T * E * D >= kShared) return Pool::instance().run(units, work);
  for (int64_t unit = 0; unit < units; unit++) work(unit);
}

// The K best, best first, ties to the lower number.
static void best_of(const float* scores, int64_t E, int64_t K, int64_t* ids) {
  for (int64_t k = 0; k < K; k++) {
    int64_t best = -1;
    for (int64_t e = 0; e < E; e++) {
      if (best >= 0 && !(scores[e] > scores[best])) continue;
      bool taken = false;
      for (int64_t earlier = 0; earlier < k; earlier++) taken |= ids[earlier] == e;
      if (!taken) best = e;
    }
    ids[k] = best;
  }
}

// The K best of a softmax. NaN among the logits makes every weight NaN.
static void route(const Gate& gate, const float* logits, int64_t E, int64_t K, int64_t* ids, float* weights) {
  bool is_nan = false;
  for (int64_t e = 0; e < E; e++) is_nan |= logits[e] != logits[e];
  best_of(logits, E, K, ids);
  float total = 0.0f;
  const float top = logits[ids[0]];
  for (int64_t k = 0; k < K; k++) total += weights[k] = std::exp(logits[ids[k]] - top);
  if (!gate.renormalise) {
    total = 0.0f;
    for (int64_t e = 0; e < E; e++) total += std::exp(logits[e] - top);
  }
  for (int64_t k = 0; k < K; k++) weights[k] = is_nan ? NAN : weights[k] / total;
}

}  // namespace TURNOUT_ISA
