// Which rows each expert gets: the choices of all tokens in the order of the experts.
#pragma once
#include <cstdint>
#include <vector>

#include "lanes.h"

namespace TURNOUT_ISA {

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An empty place: the token has fewer than k experts.
constexpr int64_t kNoExpert = -1;

// Routed rows in expert order.
struct Routed {
  std::vector<int64_t> first;  // E + 1: where each expert's rows begin
  std::vector<int64_t> token;  // R
  std::vector<float> weight;   // R
  std::vector<int64_t> active;  // experts that have rows
  std::vector<bf16> hidden;    // (R, F)
};

static bool group(Routed& routed, const int64_t* ids, const float* weights, int64_t T, int64_t k, int64_t E) {
  int64_t R = T * k;
  routed.first.assign(E + 1, 0);
  for (int64_t i = 0; i < R; i++) {
    if (ids[i] == kNoExpert) continue;
    if (ids[i] < 0 || ids[i] >= E) return false;
    routed.first[ids[i] + 1]++;
  }
  routed.active.clear();
  for (int64_t e = 0; e < E; e++) {
    if (routed.first[e + 1]) routed.active.push_back(e);
    routed.first[e + 1] += routed.first[e];
  }
  routed.token.resize(R);
  routed.weight.resize(R);
  std::vector<int64_t> next(routed.first.begin(), routed.first.end() - 1);
  for (int64_t i = 0; i < R; i++) {
    if (ids[i] == kNoExpert) continue;
    int64_t place = next[ids[i]]++;
    routed.token[place] = i / k;
    routed.weight[place] = weights[i];
  }
  return true;
}

}  // namespace TURNOUT_ISA
