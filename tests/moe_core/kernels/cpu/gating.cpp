// Prints the largest relative error of silu(gate) · up against double precision, and what becomes of gates that are far out.
#include <cmath>
#include <cstdio>
#include <limits>

#include "gating.h"

using namespace TURNOUT_ISA;

static float product(float gate, float up, int32_t kind = turnout::kSilu) {
  float sums[32], out[16];
  for (int lane = 0; lane < 16; lane++) sums[lane] = gate, sums[16 + lane] = up;
  gate_and_multiply_rows({kind, 1.7f, 7.0f, nullptr, nullptr}, sums, out, 1);
  return out[9];
}

// As torch has it: nothing is left of a gate far down, and 0 times -inf is NaN.
static bool is_nothing_far_down(int32_t kind) {
  bool all = std::isnan(product(-std::numeric_limits<float>::infinity(), 2.0f, kind));
  for (float gate : {-100.0f, -1000.0f, -1e30f, std::numeric_limits<float>::lowest()})
    for (float up : {2.0f, -3e38f}) all &= product(gate, up, kind) == 0.0f;
  return all;
}

int main() {
  double most = 0;
  for (int64_t i = 0; i < 1 << 20; i++) {
    // From -86 to 86, and nearer and nearer to zero.
    const float gate = static_cast<float>((i % 2 ? 1 : -1) * 86.0 * std::exp2(-24.0 * static_cast<double>(i) / (1 << 20)));
    const double wanted = gate / (1.0 + std::exp(-static_cast<double>(gate))) * -3.0;
    most = std::fmax(most, std::fabs(product(gate, -3.0f) - wanted) / std::fabs(wanted));
  }
  const float infinite = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::printf("%.3e %g %g %g %d %d %d %d %d %d\n", most, product(0.0f, 2.0f), product(1000.0f, 2.0f), product(infinite, 2.0f),
              std::fabs(product(-1000.0f, 2.0f)) < 1e-30f, std::isnan(product(nan, 2.0f)), std::isnan(product(2.0f, nan)),
              is_nothing_far_down(turnout::kSilu), is_nothing_far_down(turnout::kClamped), is_nothing_far_down(turnout::kClampedSilu));
  return 0;
}
