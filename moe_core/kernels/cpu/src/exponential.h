// Powers of two of sixteen numbers at once, for shares of keys: what is far below zero becomes 0, NaN stays NaN.
#pragma once
#include <limits>

#include "vec16.h"

namespace TURNOUT_ISA {

constexpr float kLog2e = 1.44269504088896341f;
// The best score before there is one, below which none is best: where scores are -inf this is not subtracted from itself.
constexpr float kLowest = std::numeric_limits<float>::lowest();

// Of x up to 128, infinite above 127.5; 0 from -127 down. 2^x is 2^n times a polynomial of the rest, |rest| <= 1/2: of those of the fifth degree that
// are 1 at 0 the one whose relative error is least, 9.2e-8; float32 rounds by 6e-8.
static inline F16 exp2_16(F16 x) {
  // Of these two the second is taken where one is NaN.
  x = greater(splat_f(-127.0f), x);
  // Beside 1.5 · 2^23 the last place is one: n lies in the last bits of the sum.
  const F16 beside = splat_f(12582912.0f), shifted = add(x, beside), rest = subtract(x, subtract(shifted, beside));
  F16 power = fma(splat_f(9.671512991189957e-3f), splat_f(1.326472731307149e-3f), rest);
  power = fma(splat_f(5.550733581185341e-2f), power, rest);
  power = fma(splat_f(2.402224242687225e-1f), power, rest);
  power = fma(splat_f(6.931470036506653e-1f), power, rest);
  power = fma(splat_f(1.0f), power, rest);
  return mul(power, two_to_last_bits(shifted));
}

// The same for what is rounded to bfloat16 at once, shares and gates: of the polynomials of the fourth degree from 0 to 1 that are 1 at 0 the
// one whose relative error is least, 2.9e-6. Half of the instructions; what is below 2^-126 may or may not be 0, and from 2^128 up
// it is infinite.
static inline F16 share_exp2_16(F16 x) {
#if defined(__AVX512DQ__)
  constexpr int kLessFloor = 9;
  const F16 rest = _mm512_reduce_ps(x, kLessFloor);
  F16 power = fma(splat_f(5.2245374038909e-2f), splat_f(1.3425154424302e-2f), rest);
  power = fma(splat_f(2.4127855610120e-1f), power, rest);
  power = fma(splat_f(6.9304515453239e-1f), power, rest);
  power = fma(splat_f(1.0f), power, rest);
  return _mm512_scalef_ps(power, x);
#else
  return exp2_16(lesser(splat_f(128.0f), x));
#endif
}

}  // namespace TURNOUT_ISA
