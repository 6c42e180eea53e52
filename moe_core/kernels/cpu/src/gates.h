// Gates: a token's logits over the experts, and from them its choice.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "choice.h"
#include "mixture.h"
#include "scores.h"

namespace TURNOUT_ISA {

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

// Of the chosen, their part of the softmax over themselves, or over all.
static void softmax_weights(const Gate& gate, const float* logits, int64_t E, int64_t K, const int64_t* ids, float* weights) {
  float total = 0.0f, top = logits[ids[0]];
  for (int64_t k = 1; k < K; k++) top = std::max(top, logits[ids[k]]);
  for (int64_t e = 0; !gate.renormalise && e < E; e++) top = std::max(top, logits[e]);
  for (int64_t k = 0; k < K; k++) total += weights[k] = std::exp(logits[ids[k]] - top);
  if (!gate.renormalise) {
    total = 0.0f;
    for (int64_t e = 0; e < E; e++) total += std::exp(logits[e] - top);
  }
  for (int64_t k = 0; k < K; k++) weights[k] /= total;
}

// The experts of one token and their weights. NaN among the logits makes every weight NaN.
static void route(const Gate& gate, const float* logits, int64_t E, int64_t K, int64_t* ids, float* weights) {
  static thread_local std::vector<float> scores, choice;
  const bool by_logits = gate.scores == turnout::kTopk;
  scores.assign(logits, logits + E);
  if (!by_logits || gate.selection_bias) score(gate.scores, scores.data(), E);
  choice = scores;
  for (int64_t e = 0; e < E; e++) {
    if (gate.selection_bias) choice[e] += gate.selection_bias[e];
    if (logits[e] == -INFINITY) choice[e] = -INFINITY;
  }
  if (!by_logits && gate.num_groups > gate.topk_group) leave_groups(gate, choice.data(), E);
  best_of(choice.data(), E, K, ids);
  if (by_logits) {
    softmax_weights(gate, logits, E, K, ids, weights);
  } else {
    float total = 0.0f;
    for (int64_t k = 0; k < K; k++) total += weights[k] = scores[ids[k]];
    for (int64_t k = 0; k < K; k++) weights[k] = (gate.renormalise ? weights[k] / (total + kTiny) : weights[k]) * gate.factor;
  }
  bool is_nan = false;
  for (int64_t e = 0; e < E; e++) is_nan |= logits[e] != logits[e];
  for (int64_t k = 0; is_nan && k < K; k++) weights[k] = NAN;
}

}  // namespace TURNOUT_ISA
