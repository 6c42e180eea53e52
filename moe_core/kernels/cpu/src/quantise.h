// Weights into codes of 8 or 4 bits, each group of a row by itself; the formula in torch is moe_core/kernels/scales.py.
#pragma once
#include <algorithm>
#include <cmath>

#include "panels.h"
#include "pool.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Pool;

constexpr int64_t kLongestGroup = 1024;
// Scales that are tried for 4 bits: the largest weight becomes code -d for d from kLeastTop on.
constexpr int kTries = 6, kRefinements = 1, kEnds = 4;
constexpr float kLeastTop = 6.8f, kTopStep = 0.52f, kEndStep = 0.08f, kLargestHalf = 65504.0f;

// Values of a group, filled up with zeros to whole lanes, which cost nothing for any scale.
struct Group {
  alignas(64) float values[kLongestGroup];
  int64_t size;
  float top;  // the largest code

  // Code minus zero point of sixteen weights, to nearest even as torch rounds; NaN becomes the lowest.
  F16 codes(int64_t at, float factor, float zero) const {
    const F16 magic = splat_f(12582912.0f);
    const F16 near = subtract(add(mul(load_f(values + at), splat_f(factor)), magic), magic);
    return lesser(greater(near, splat_f(-zero)), splat_f(top - zero));
  }
};

struct Fit {
  float scale = 0.0f, zero = 0.0f, error = 0.0f;
};

static inline float stored_scale(float scale) {
  return half_to_float(float_to_half(std::min(std::max(scale, -kLargestHalf), kLargestHalf)));
}

// Keeps a scale, as it would be stored, when it leaves less squared error than `best`.
static inline void attempt(const Group& group, float wanted, float zero, Fit& best) {
  const float scale = stored_scale(wanted);
  if (scale == 0.0f || !std::isfinite(wanted)) return;
  F16 error = zero_f();
  for (int64_t at = 0; at < group.size; at += 16) {
    const F16 rest = fma(load_f(group.values + at), group.codes(at, 1.0f / scale, zero), splat_f(-scale));
    error = fma(error, rest, rest);
  }
  const float sum = sum_of(error);
  if (best.scale == 0.0f || sum < best.error) best = {scale, zero, sum};
}

// The scale that suits the codes of the best one so far, by least squares.
static inline void refine(const Group& group, Fit& best) {
  if (best.scale == 0.0f) return;
  F16 both = zero_f(), own = zero_f();
  for (int64_t at = 0; at < group.size; at += 16) {
    const F16 code = group.codes(at, 1.0f / best.scale, best.zero);
    both = fma(both, code, load_f(group.values + at));
    own = fma(own, code, code);
  }
  const float squares = sum_of(own);
  if (squares > 0.0f) attempt(group, sum_of(both) / squares, best.zero, best);
}

static inline Fit symmetric_fit(const Group& group, float low, float high, int bits) {
  Fit best;
  const float zero = static_cast<float>(1 << (bits - 1)), largest = -low > high ? low : high;
  if (bits == 8) {
    best = {stored_scale(std::fabs(largest) / (zero - 1.0f)), zero, 0.0f};
    return best;
  }
  best.zero = zero;
  for (int i = 0; i < kTries; i++) attempt(group, -largest / (kLeastTop + kTopStep * static_cast<float>(i)), zero, best);
  for (int i = 0; i < kRefinements; i++) refine(group, best);
  return best;
}

static inline Fit asymmetric_fit(const Group& group, float low, float high, int bits) {
  Fit best;
  const auto between = [&](float first, float last) {
    const float scale = stored_scale((last - first) / group.top);
    const float zero = scale == 0.0f ? 0.0f : std::nearbyint(-first / scale);
    return Fit{scale, std::min(std::max(zero, 0.0f), group.top), 0.0f};
  };
  if (bits == 8) return between(low, high);
  for (int i = 0; i < kEnds; i++)
    for (int j = 0; j < kEnds; j++) {
      const Fit ends = between(low * (1.0f - kEndStep * static_cast<float>(i)), high * (1.0f - kEndStep * static_cast<float>(j)));
      attempt(group, ends.scale, ends.zero, best);
    }
  for (int i = 0; i < kRefinements; i++) refine(group, best);
  return best;
}

static inline void put_group_codes(const Group& group, const Fit& fit, int bits, int64_t left, uint8_t* out) {
  alignas(64) float code[kLongestGroup];
  const float factor = fit.scale == 0.0f ? 0.0f : 1.0f / fit.scale;
  for (int64_t at = 0; at < group.size; at += 16) store_f(code + at, add(group.codes(at, factor, fit.zero), splat_f(fit.zero)));
  if (bits == 8) {
    for (int64_t i = 0; i < left; i++) out[i] = static_cast<uint8_t>(static_cast<int32_t>(code[i]));
    return;
  }
  for (int64_t i = 0; i < left / 2; i++)
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(code[2 * i]) | static_cast<int32_t>(code[2 * i + 1]) << 4);
  if (left % 2) out[left / 2] = static_cast<uint8_t>(static_cast<int32_t>(code[left - 1]));
}

// The values of a group, and the ends of their range with zero in it.
static inline void take(Group& group, const void* weight, int is_bf16, int64_t first, int64_t left, float& low, float& high) {
  if (is_bf16)
    for (int64_t i = 0; i < left; i++) group.values[i] = widen(static_cast<const bf16*>(weight)[first + i]);
  else
    std::memcpy(group.values, static_cast<const float*>(weight) + first, left * 4);
  std::fill(group.values + left, group.values + group.size, 0.0f);
  F16 least = zero_f(), most = zero_f();
  for (int64_t at = 0; at < group.size; at += 16) {
    least = lesser(load_f(group.values + at), least);
    most = greater(load_f(group.values + at), most);
  }
  float lanes[16];
  store_f(lanes, least);
  low = *std::min_element(lanes, lanes + 16);
  store_f(lanes, most);
  high = *std::max_element(lanes, lanes + 16);
}

static void quantise(const void* weight, int is_bf16, int64_t rows, int64_t cols, int bits, int group_size, int symmetric,
                     uint8_t* codes, uint16_t* scales, uint8_t* zeros) {
  const int64_t groups = (cols + group_size - 1) / group_size, bytes = (cols * bits + 7) / 8;
  Pool::instance().run((rows + 15) / 16, [&](int64_t unit) {
    Group group;
    group.size = group_size;
    group.top = static_cast<float>((1 << bits) - 1);
    for (int64_t row = unit * 16; row < std::min(rows, unit * 16 + 16); row++)
      for (int64_t g = 0; g < groups; g++) {
        const int64_t first = row * cols + g * group_size, left = std::min<int64_t>(group_size, cols - g * group_size);
        float low, high;
        take(group, weight, is_bf16, first, left, low, high);
        const Fit fit = symmetric ? symmetric_fit(group, low, high, bits) : asymmetric_fit(group, low, high, bits);
        put_group_codes(group, fit, bits, left, codes + row * bytes + g * group_size * bits / 8);
        scales[row * groups + g] = float_to_half(fit.scale);
        if (!symmetric) zeros[row * groups + g] = static_cast<uint8_t>(fit.zero);
      }
  });
}

}  // namespace TURNOUT_ISA
