// Gates: a token's logits over the experts, and from them its choice.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "choice.h"
#include "routed.h"
#include "router.h"
#include "scores.h"
#include "sparsemax.h"
#include "table.h"

namespace TURNOUT_ISA {

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

// Leaves the fewest of the chosen whose parts of the softmax reach p together; other places are empty.
static void leave_reach(const Gate& gate, const float* logits, int64_t E, int64_t K, int64_t* ids, float* weights) {
  Gate among_all = gate;
  among_all.renormalise = 0;
  softmax_weights(among_all, logits, E, K, ids, weights);
  double reached = 0.0;
  int64_t kept = 0;
  for (int64_t k = 0; k < K; k++) {
    reached += weights[k];
    // In float32 as the router in torch finds it: which place is the last may hang on it.
    if (k == 0 || !(static_cast<float>(reached) - weights[k] >= gate.reach)) kept = k + 1;
    else break;
  }
  if (gate.renormalise) softmax_weights(gate, logits, E, kept, ids, weights);
  for (int64_t k = kept; k < K; k++) ids[k] = kNoExpert, weights[k] = 0.0f;
}

// The chosen projected on the simplex, by themselves or among all; those without a share leave their places empty.
static void sparse_weights(const Gate& gate, const float* logits, int64_t E, int64_t K, int64_t* ids, float* weights) {
  static thread_local std::vector<float> shares;
  if (gate.renormalise) {
    for (int64_t k = 0; k < K; k++) weights[k] = logits[ids[k]];
    sparsemax(weights, K);
  } else {
    shares.assign(logits, logits + E);
    sparsemax(shares.data(), E);
    for (int64_t k = 0; k < K; k++) weights[k] = shares[ids[k]];
  }
  for (int64_t k = 0; k < K; k++)
    if (!(weights[k] > 0.0f)) ids[k] = kNoExpert, weights[k] = 0.0f;
}

static void score_weights(const Gate& gate, const float* scores, int64_t K, const int64_t* ids, float* weights) {
  float total = 0.0f;
  for (int64_t k = 0; k < K; k++) total += weights[k] = scores[ids[k]];
  for (int64_t k = 0; k < K; k++) weights[k] = (gate.renormalise ? weights[k] / (total + kTiny) : weights[k]) * gate.factor;
}

// The experts that a table names for a word, of equal weight, or by the softmax of a gate's logits over them.
static void route_by_table(const Gate& gate, const float* logits, int64_t word, int64_t E, int64_t K, int64_t* ids,
                           float* weights) {
  look_up_experts(gate.table + word * K, logits, E, K, ids);
  for (int64_t k = 0; k < K; k++) weights[k] = gate.router ? logits[ids[k]] : 0.0f;
  score(turnout::kSoftmax, weights, K);
}

// The experts of one token and their weights. NaN among the logits makes every weight NaN.
static void route(const Gate& gate, const float* logits, int64_t word, int64_t E, int64_t K, int64_t* ids, float* weights) {
  static thread_local std::vector<float> scores, choice;
  if (gate.scores == turnout::kTable) return route_by_table(gate, logits, word, E, K, ids, weights);
  const bool by_softmax = gate.scores == turnout::kTopk, by_logits = gate.scores >= turnout::kTopk;
  int is_nan = 0;
  for (int64_t e = 0; e < E; e++) is_nan |= logits[e] != logits[e];
  if (by_logits && !gate.selection_bias) {
    best_of(logits, E, K, ids);
  } else {
    scores.assign(logits, logits + E);
    if (!by_logits || by_softmax) score(gate.scores, scores.data(), E);
    choice = scores;
    for (int64_t e = 0; e < E; e++) {
      if (gate.selection_bias) choice[e] += gate.selection_bias[e];
      if (logits[e] == -INFINITY) choice[e] = -INFINITY;
    }
    if (!by_logits && gate.num_groups > gate.topk_group) leave_groups(gate, choice.data(), E);
    best_of(choice.data(), E, K, ids);
  }
  if (is_nan) return std::fill(weights, weights + K, NAN);
  if (gate.scores == turnout::kSparsemax) return sparse_weights(gate, logits, E, K, ids, weights);
  if (!by_logits) return score_weights(gate, scores.data(), K, ids, weights);
  if (gate.scores == turnout::kBest) {
    for (int64_t k = 0; k < K; k++) weights[k] = logits[ids[k]];
    return score(turnout::kSigmoid, weights, K);
  }
  if (gate.reach > 0.0f) return leave_reach(gate, logits, E, K, ids, weights);
  softmax_weights(gate, logits, E, K, ids, weights);
}

}  // namespace TURNOUT_ISA
