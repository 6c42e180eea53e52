// How scores become choices.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "panels.h"
#include "plan.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Gate;

// The K best, best first, ties to the lower number; NaN takes no place and leaves the one that it has among the first K.
static void best_by_places(const float* scores, int64_t E, int64_t K, int64_t* ids) {
  int64_t held = 0;
  auto take = [&](int64_t e) {
    int64_t place = held < K ? held++ : K - 1;
    for (; place > 0 && scores[e] > scores[ids[place - 1]]; place--) ids[place] = ids[place - 1];
    ids[place] = e;
  };
  for (int64_t e = 0; e < E; e++)
    if (held < K || scores[e] > scores[ids[K - 1]]) take(e);
}

// The same where no score is NaN: a pass finds the highest below those that are taken, and takes all that equal it.
static void best_by_passes(const float* scores, int64_t E, int64_t K, int64_t* ids) {
  const int64_t whole = E / 16, blocks = (E + 15) / 16;
  // No comparison with NaN is true.
  alignas(64) float rest[16];
  std::fill(rest, rest + 16, NAN);
  std::copy(scores + whole * 16, scores + E, rest);
  auto block = [&](int64_t b) { return load_f(b < whole ? scores + b * 16 : rest); };
  F16 best = splat_f(-INFINITY);
  // Of these two the second is taken where the first is NaN.
  for (int64_t b = 0; b < blocks; b++) best = greater(block(b), best);
  for (int64_t k = 0; k < K;) {
    const F16 highest = splat_f(greatest_of(best));
    best = splat_f(-INFINITY);
    for (int64_t b = 0; b < blocks; b++) {
      const F16 here = block(b);
      for (uint32_t equal = equal_bits(here, highest); equal && k < K; equal &= equal - 1)
        ids[k++] = b * 16 + __builtin_ctz(equal);
      best = greater(if_below(here, highest), best);
    }
  }
}

// The K best of E scores, K no more than E, best first, ties to the lower number.
static void best_of(const float* scores, int64_t E, int64_t K, int64_t* ids) {
  // Without a branch for each: loops over it vectorise.
  int has_nan = 0;
  for (int64_t e = 0; e < E; e++) has_nan |= scores[e] != scores[e];
  if (has_nan) return best_by_places(scores, E, K, ids);
  best_by_passes(scores, E, K, ids);
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
