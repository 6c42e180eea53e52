// What stands between the two halves of an expert.
#pragma once
#include <cmath>
#include <cstdint>

#include "exponential.h"
#include "lanes.h"
#include "plan.h"

namespace TURNOUT_ISA {

using turnout::Gating;

static inline float silu(float x) { return x / (1.0f + exp_(-x)); }
// NaN passes both.
static inline float at_most(float x, float limit) { return x > limit ? limit : x; }
static inline float within(float x, float limit) { return x < -limit ? -limit : at_most(x, limit); }

// Calls each(formula) with what makes one number of gate and up, of all kinds but the plain one.
template <class Each>
static inline void with_formula(const Gating& gating, const Each& each) {
  const float alpha = gating.alpha, limit = gating.limit;
  switch (gating.kind) {
    case turnout::kGelu:
      return each([](float gate, float up) { return 0.5f * gate * (1.0f + std::erf(gate * 0.70710678118654752f)) * up; });
    case turnout::kClamped:
      return each([=](float gate, float up) {
        const float bound = at_most(gate, limit);
        return (within(up, limit) + 1.0f) * (bound / (1.0f + exp_(-alpha * bound)));
      });
    default:
      return each([=](float gate, float up) { return at_most(silu(gate), limit) * within(up, limit); });
  }
}

// silu(gate) · up of sixteen; where the power is infinite, silu(gate) is gate · 0: -0 of finite ones, NaN of -inf, as in torch. What comes
// of it is rounded to bfloat16 or to eight bits, so the short power will do.
static inline F16 silu_and_multiply(F16 gate, F16 up) {
  const F16 power = share_exp2_16(mul(gate, splat_f(-kLog2e)));
  return mul(mul(gate, reciprocal(add(splat_f(1.0f), power))), up);
}

// Of `num` inputs: of each sixteen sums of gate, then sixteen of up; out (num, 16).
static void gate_and_multiply_rows(const Gating& gating, const float* __restrict sums, float* __restrict out, int num) {
  if (gating.kind == turnout::kSilu) {
    for (; num; num--, sums += 32, out += 16) store_f(out, silu_and_multiply(load_f(sums), load_f(sums + 16)));
    return;
  }
  with_formula(gating, [&](const auto& formula) {
    for (int n = 0; n < num; n++)
      for (int i = 0; i < 16; i++) out[n * 16 + i] = formula(sums[n * 32 + i], sums[n * 32 + 16 + i]);
  });
}

// `num` values of a bias from `first` on, as float32; zeros where there is none, and up to `size`.
static inline void widen_bias(const bf16* bias, int64_t first, int64_t num, float* out, int64_t size) {
  for (int64_t i = 0; i < size; i++) out[i] = bias && i < num ? widen(bias[first + i]) : 0.0f;
}

}  // namespace TURNOUT_ISA
