// How scores become choices.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "plan.h"

namespace TURNOUT_ISA {

using turnout::Gate;

// The K best, best first, ties to the lower number.
static void best_of(const float* scores, int64_t E, int64_t K, int64_t* ids) {
  int64_t held = 0;
  auto take = [&](int64_t e) {
    int64_t place = held < K ? held++ : K - 1;
    for (; place > 0 && scores[e] > scores[ids[place - 1]]; place--) ids[place] = ids[place - 1];
    ids[place] = e;
  };
  int64_t e = 0;
  for (; e < E && held < K; e++) take(e);
  // Most experts are below the worst that is held, which sixteen at once say.
  for (; e + 16 <= E; e += 16) {
    const float least = scores[ids[K - 1]];
    int any = 0;
    for (int lane = 0; lane < 16; lane++) any |= scores[e + lane] > least;
    for (int lane = 0; any && lane < 16; lane++)
      if (scores[e + lane] > scores[ids[K - 1]]) take(e + lane);
  }
  for (; e < E; e++)
    if (scores[e] > scores[ids[K - 1]]) take(e);
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

}  // namespace TURNOUT_ISA
