// Gates: a token's logits over the experts, and from them its choice.
#pragma once
#include <algorithm>
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

// Takes experts outside the best groups far below all others, masked ones apart.
static void leave_groups(const Gate& gate, float* choice, int64_t E) {
  // More than any two scores and biases differ; as in the router in torch.
  constexpr float kOutside = 1e4f;
  static thread_local std::vector<float> worth;
  static thread_local std::vector<int64_t> chosen;
  const int64_t size = E / gate.num_groups;
  worth.resize(gate.num_groups);
  chosen.resize(gate.topk_group);
  for (int64_t g = 0; g < gate.num_groups; g++) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; e++) {
      if (choice[e] > best) second = best, best = choice[e];
      else if (choice[e] > second) second = choice[e];
    }
    // A masked expert adds nothing to its group and takes nothing from it; a group of such is worth nothing.
    worth[g] = gate.two_best && second > -INFINITY ? best + second : best;
  }
  best_of(worth.data(), gate.num_groups, gate.topk_group, chosen.data());
  for (int64_t g = 0; g < gate.num_groups; g++) {
    bool inside = false;
    for (int64_t one : chosen) inside |= one == g;
    for (int64_t e = g * size; !inside && e < (g + 1) * size; e++) choice[e] -= kOutside;
  }
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
    // Keeps 0 / 0 from being NaN where every score has underflowed.
    for (int64_t k = 0; k < K; k++) weights[k] = (gate.renormalise ? weights[k] / (total + 1e-20f) : weights[k]) * gate.factor;
  }
  bool is_nan = false;
  for (int64_t e = 0; e < E; e++) is_nan |= logits[e] != logits[e];
  for (int64_t k = 0; is_nan && k < K; k++) weights[k] = NAN;
}

}  // namespace TURNOUT_ISA
