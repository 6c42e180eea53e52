// A gate that is a table from vocabulary entry to experts.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "plan.h"

namespace TURNOUT_ISA {

using turnout::Gate;

// The experts of a row, (K). A masked one gives way to the next after it, in a ring, that is neither masked nor taken; those that
// stand in come after the others, and masked ones for which there is none come last. Numbers of the table are those of experts.
static void look_up_experts(const float* row, const float* logits, int64_t E, int64_t K, int64_t* ids) {
  static thread_local std::vector<uint8_t> closed;
  static thread_local std::vector<int64_t> taken, rank;
  closed.assign(E, 0);
  taken.resize(K);
  rank.assign(K, 0);
  for (int64_t e = 0; e < E; e++) closed[e] = logits[e] == -INFINITY;
  for (int64_t k = 0; k < K; k++) {
    taken[k] = static_cast<int64_t>(row[k]);
    rank[k] = closed[taken[k]];
  }
  for (int64_t k = 0; k < K; k++) closed[taken[k]] = 1;
  for (int64_t k = 0; k < K; k++) {
    if (!rank[k]) continue;
    int64_t next = taken[k], steps = 0;
    while (steps < E && closed[next]) next = (next + 1) % E, steps++;
    if (steps == E) rank[k] = 2;
    else closed[taken[k] = next] = 1;
  }
  int64_t place = 0;
  for (int64_t wanted = 0; wanted < 3; wanted++)
    for (int64_t k = 0; k < K; k++)
      if (rank[k] == wanted) ids[place++] = taken[k];
}

}  // namespace TURNOUT_ISA
