// Prints the largest relative error of silu(gate) · up against double precision, and what becomes of gates that are far out.
#include <cmath>
#include <cstdio>
#include <limits>

#include "gating.h"

using namespace TURNOUT_ISA;

static float product(float gate, float up) {
  float sums[32], out[16];
  for (int lane = 0; lane < 16; lane++) sums[lane] = gate, sums[16 + lane] = up;
  gate_and_multiply_rows({turnout::kSilu, 0, 0, nullptr, nullptr}, sums, out, 1);
  return out[9];
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
  std::printf("%.3e %g %g %g %d %d %d\n", most, product(0.0f, 2.0f), product(1000.0f, 2.0f), product(infinite, 2.0f),
              std::fabs(product(-1000.0f, 2.0f)) < 1e-30f, std::isnan(product(nan, 2.0f)), std::isnan(product(2.0f, nan)));
  return 0;
}
