// Prints the largest relative error of powers of two of numbers from -126 to 0 against double precision, and what becomes of
// others: a line for each of the two functions.
#include <cmath>
#include <cstdio>
#include <limits>

#include "exponential.h"

using namespace TURNOUT_ISA;

using Powers = F16 (*)(F16);

static float power(Powers powers, float x) {
  float all[16];
  store_f(all, powers(splat_f(x)));
  return all[7];
}

static void print(Powers powers) {
  double most = 0;
  const int64_t count = 1 << 22;
  float in[16], out[16];
  for (int64_t i = 0; i < count; i += 16) {
    // Even steps over the range, and near zero steps that shrink.
    for (int lane = 0; lane < 16; lane++) {
      const double share = static_cast<double>(i + lane) / count;
      in[lane] = static_cast<float>(-126.0 * (lane % 2 ? share : std::exp2(-24.0 * share)));
    }
    store_f(out, powers(load_f(in)));
    for (int lane = 0; lane < 16; lane++) {
      const double wanted = std::exp2(static_cast<double>(in[lane]));
      most = std::fmax(most, std::fabs(out[lane] - wanted) / wanted);
    }
  }
  const float infinite = std::numeric_limits<float>::infinity();
  std::printf("%.3e %g %g %g %g %d\n", most, power(powers, 0.0f), power(powers, -1.0f), power(powers, -160.0f),
              power(powers, -infinite), std::isnan(power(powers, std::numeric_limits<float>::quiet_NaN())));
}

int main() {
  print(exp2_16);
  std::printf("%g\n", power(exp2_16, -127.0f));
  print(share_exp2_16);
  return 0;
}
