// Twins: copies of an expert, of which each token sees one. As in the router in torch (`twins.py`).
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "floors.h"
#include "lanes.h"

namespace TURNOUT_ISA {

// What the domain asks of one token in one layer: added to its logits, (E); whose floor is how high.
struct Asked {
  const float* prior;   // or none
  const uint8_t* mine;  // or none
  float floor;
};

// One token's view of a layer with twins: what is added to its logits, with -inf for every twin that it does not see, and whose
// the floor is among those that it sees.
class OneOfTwins {
 public:
  void set(const Gate& gate, int64_t num_experts) {
    roots = gate.roots, E = num_experts;
    place.assign(E, 0), size.assign(E, 0);
    for (int64_t e = 0; e < E; e++) place[e] = size[roots[e]]++;
    for (auto* of_experts : {&score, &held, &best, &given}) of_experts->assign(E, 0.0f);
    for (auto* flags : {&picked, &seen, &mine}) flags->assign(E, 0);
  }

  Asked look(const Gate& gate, const float* logits, const bf16* x, int64_t D, const Asked& asked) {
    pick(x, D);
    for (int64_t e = 0; e < E; e++) score[e] = picked[e];
    if (gate.holds && gate.router) choosing_scores(gate, logits, asked);
    for (int64_t e = 0; asked.prior && e < E; e++)
      if (asked.prior[e] == -INFINITY) score[e] = -INFINITY;
    see(score);
    // A push on a hidden twin, and a floor under it, are for the one that is seen.
    std::fill(best.begin(), best.end(), 0.0f);
    for (int64_t e = 0; asked.prior && e < E; e++) best[roots[e]] = std::max(best[roots[e]], asked.prior[e]);
    for (int64_t e = 0; e < E; e++) {
      const float prior = asked.prior ? asked.prior[e] : 0.0f;
      given[e] = !seen[e] ? -INFINITY : prior == 0.0f ? best[roots[e]] : prior;
    }
    if (!asked.mine) return {given.data(), nullptr, 0.0f};
    any_of_twins(asked.mine, mine);
    for (int64_t e = 0; e < E; e++) mine[e] &= seen[e];
    return {given.data(), mine.data(), asked.floor};
  }

 private:
  const int64_t* roots = nullptr;
  int64_t E = 0;
  std::vector<int64_t> place, size;
  std::vector<float> score, held, best, given;
  std::vector<uint8_t> picked, seen, mine, own, hidden;

  // The one twin of each root that the signs of a few coordinates name; another one for another root.
  void pick(const bf16* x, int64_t D) {
    const int64_t num_bits = std::min<int64_t>(16, D);
    uint64_t hash = 0;
    for (int64_t bit = 0; bit < num_bits; bit++) hash |= uint64_t(widen(x[bit * (D / num_bits)]) > 0.0f) << bit;
    for (int64_t e = 0; e < E; e++) {
      uint64_t mixed = ((hash + 1) * 0x9E3779B1u + (roots[e] + 1) * 0x85EBCA6Bu) & 0xFFFFFFFFu;
      mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6Du) & 0xFFFFFFFFu;
      picked[e] = static_cast<int64_t>((mixed >> 12) % size[roots[e]]) == place[e];
    }
  }

  // Of each root the twin with the highest value; of equal ones the hash's, else the lowest number.
  void see(const std::vector<float>& values) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t e = 0; e < E; e++) {
      if (roots[e] != e) continue;
      int64_t first = e;
      for (int64_t twin = e + 1; twin < E; twin++)
        if (roots[twin] == e && (values[twin] > values[first] || (values[twin] == values[first] && picked[twin]))) first = twin;
      seen[first] = 1;
    }
  }

  void any_of_twins(const uint8_t* flags, std::vector<uint8_t>& any) {
    std::fill(best.begin(), best.end(), 0.0f);
    for (int64_t e = 0; e < E; e++)
      if (flags[e]) best[roots[e]] = 1.0f;
    for (int64_t e = 0; e < E; e++) any[e] = best[roots[e]] > 0.0f;
  }

  // What the gate would choose by if a twin were the one that is seen, with the hold on the hash's.
  void choosing_scores(const Gate& gate, const float* logits, const Asked& asked) {
    for (int64_t e = 0; e < E; e++) {
      held[e] = logits[e] + (picked[e] ? gate.hold / gate.temperature : 0.0f);
      if (asked.prior) held[e] += asked.prior[e];
    }
    if (asked.mine) raise_held(gate, logits, asked);
    score = held;
    if (gate.scores == turnout::kSigmoid || gate.scores == turnout::kSqrtSoftplus) {
      TURNOUT_ISA::score(gate.scores, score.data(), E);
    } else if (gate.selection_bias && gate.scores != turnout::kSparsemax && gate.scores != turnout::kBest) {
      // A softmax of the best twin of each root, so that its shares are of the size that the gate will see.
      see(held);
      const double sum = log_sum(held.data(), seen.data(), true, E);
      for (int64_t e = 0; e < E; e++) score[e] = static_cast<float>(std::exp(held[e] - sum));
    }
    for (int64_t e = 0; e < E; e++) {
      if (gate.selection_bias) score[e] += gate.selection_bias[e];
      if (held[e] == -INFINITY) score[e] = -INFINITY;
    }
  }

  // A floor asks for what it would of the twins that are seen, which are the domain's own wherever it has one among twins.
  void raise_held(const Gate& gate, const float* logits, const Asked& asked) {
    own.assign(E, 0), hidden.assign(E, 0);
    for (int64_t e = 0; e < E; e++) {
      score[e] = logits[e] + (asked.prior ? asked.prior[e] : 0.0f);
      own[e] = asked.mine[e] && score[e] != -INFINITY;
    }
    any_of_twins(own.data(), hidden);
    std::vector<float>& kept = given;
    for (int64_t e = 0; e < E; e++) kept[e] = hidden[e] && !own[e] ? -INFINITY : score[e];
    see(kept);
    for (int64_t e = 0; e < E; e++)
      if (!seen[e]) score[e] = -INFINITY;
    add_shift(floor_shift(gate, score.data(), asked.mine, asked.floor, E), asked.mine, held.data(), E);
  }
};

static inline OneOfTwins& twins_of_thread() {
  static thread_local OneOfTwins twins;
  return twins;
}

}  // namespace TURNOUT_ISA
