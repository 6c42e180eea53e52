// A hierarchy of gates: domain, then group, then expert, the product of three softmaxes. Equal, contiguous parts.
#pragma once
#include <cmath>
#include <cstdint>

namespace TURNOUT_ISA {

// Each of `num` logits less the logarithm of the sum of their exponentials, plus `base`.
static void log_softmax(float* logits, int64_t num, float base) {
  float top = logits[0], total = 0.0f;
  for (int64_t i = 1; i < num; i++) top = logits[i] > top ? logits[i] : top;
  for (int64_t i = 0; i < num; i++) total += std::exp(logits[i] - top);
  const float sum = std::log(total);
  for (int64_t i = 0; i < num; i++) logits[i] = base + (logits[i] - top - sum);
}

// One token's logits of N domains, G groups and E experts: in place the logarithms of what leads to each.
static void join_levels(float* domains, float* groups, float* experts, int64_t N, int64_t G, int64_t E) {
  log_softmax(domains, N, 0.0f);
  for (int64_t n = 0; n < N; n++) log_softmax(groups + n * (G / N), G / N, domains[n]);
  for (int64_t g = 0; g < G; g++) log_softmax(experts + g * (E / G), E / G, groups[g]);
}

}  // namespace TURNOUT_ISA
