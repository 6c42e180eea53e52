// Sparsemax: logits projected on the simplex (Martins & Astudillo 2016, "From Softmax to Sparsemax").
#pragma once
#include <algorithm>
#include <functional>
#include <vector>

#include "plan.h"

namespace TURNOUT_ISA {

// Makes shares of `num` logits in place: not negative, summing to one, with exact zeros. None is NaN; one at least is not -inf.
static void sparsemax(float* logits, int64_t num) {
  static thread_local std::vector<float> ordered;
  const float top = *std::max_element(logits, logits + num);
  // What lies more than one below the best has no share; held there, -inf does no harm.
  for (int64_t i = 0; i < num; i++) logits[i] = std::max(logits[i] - top, -2.0f);
  ordered.assign(logits, logits + num);
  std::sort(ordered.begin(), ordered.end(), std::greater<float>());
  double above = 0.0;
  int64_t size = 0;
  for (int64_t i = 0; i < num; i++) {
    above += ordered[i];
    size += 1.0f + static_cast<float>(i + 1) * ordered[i] > static_cast<float>(above);
  }
  const float least = ordered[std::max<int64_t>(size, 1) - 1];
  double total = 0.0;
  int64_t inside = 0;
  for (int64_t i = 0; i < num; i++)
    if (logits[i] >= least) total += logits[i], inside++;
  const float threshold = static_cast<float>((total - 1.0) / static_cast<double>(inside));
  for (int64_t i = 0; i < num; i++) logits[i] = logits[i] >= least ? std::max(logits[i] - threshold, 0.0f) : 0.0f;
}

}  // namespace TURNOUT_ISA
