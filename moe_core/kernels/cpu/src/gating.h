// What stands between the two halves of an expert.
#pragma once
#include <cmath>
#include <cstdint>

#include "lanes.h"
#include "plan.h"

namespace TURNOUT_ISA {

using turnout::Gating;

static inline float silu(float x) { return x / (1.0f + exp_(-x)); }
// NaN passes both.
static inline float at_most(float x, float limit) { return x > limit ? limit : x; }
static inline float within(float x, float limit) { return x < -limit ? -limit : at_most(x, limit); }

static inline void gate_and_multiply(const Gating& gating, const float* gate, const float* up, float* out, int num) {
  const float alpha = gating.alpha, limit = gating.limit;
  switch (gating.kind) {
    case turnout::kGelu:
      for (int i = 0; i < num; i++) out[i] = 0.5f * gate[i] * (1.0f + std::erf(gate[i] * 0.70710678118654752f)) * up[i];
      return;
    case turnout::kClamped:
      for (int i = 0; i < num; i++) {
        const float bound = at_most(gate[i], limit);
        out[i] = (within(up[i], limit) + 1.0f) * (bound / (1.0f + exp_(-alpha * bound)));
      }
      return;
    case turnout::kClampedSilu:
      for (int i = 0; i < num; i++) out[i] = at_most(silu(gate[i]), limit) * within(up[i], limit);
      return;
    default:
      for (int i = 0; i < num; i++) out[i] = gate[i] / (1.0f + exp_(-gate[i])) * up[i];
  }
}

// `num` values of a bias from `first` on, as float32; zeros where there is none, and up to `size`.
static inline void widen_bias(const bf16* bias, int64_t first, int64_t num, float* out, int64_t size) {
  for (int64_t i = 0; i < size; i++) out[i] = bias && i < num ? widen(bias[first + i]) : 0.0f;
}

}  // namespace TURNOUT_ISA
