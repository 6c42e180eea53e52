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
// In a super-group scales are so many times a common one, of which so many are tried.
constexpr int kMostFactor = 15, kTops = 16;
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

// Positive, rounded to seven significant bits and to what float16 holds, so that fifteen times it is a float16 too.
static inline float seven_bits(float scale) {
  scale = std::min(scale, 4096.0f);
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  bits = (bits + (1u << 16)) & ~((1u << 17) - 1);
  std::memcpy(&scale, &bits, 4);
  return stored_scale(scale);
}

// Of a scale without its sign.
static inline float factor_of(float scale, float common) {
  return std::min(std::max(std::nearbyint(scale / common), 1.0f), static_cast<float>(kMostFactor));
}

// What a group's squared error grows by for a change of its scale, squared.
static inline float energy(const Group& group, const Fit& fit) {
  if (fit.scale == 0.0f) return 0.0f;
  F16 sum = zero_f();
  for (int64_t at = 0; at < group.size; at += 16) {
    const F16 code = group.codes(at, 1.0f / fit.scale, fit.zero);
    sum = fma(sum, code, code);
  }
  return sum_of(sum);
}

// The scale that all of a super-group's are whole times: of those that are tried the one that costs least; 0 for none.
static inline float common_scale(const Fit* fits, const float* energies, int64_t num) {
  float largest = 0.0f, best = 0.0f, least = INFINITY;
  for (int64_t i = 0; i < num; i++) largest = std::max(largest, std::fabs(fits[i].scale));
  for (int i = 0; i < kTops; i++) {
    const float tried = seven_bits(largest / (static_cast<float>(kMostFactor) - 0.5f * static_cast<float>(i)));
    if (tried <= 0.0f) continue;
    float error = 0.0f;
    for (int64_t j = 0; j < num; j++) {
      const float scale = std::fabs(fits[j].scale), off = scale == 0.0f ? 0.0f : scale - factor_of(scale, tried) * tried;
      error += energies[j] * off * off;
    }
    if (error < least) best = tried, least = error;
  }
  return best;
}

// The whole multiple of a common scale that is nearest to a group's, or the one beside it that leaves less squared error.
static inline Fit of_common(const Group& group, const Fit& fit, float common) {
  Fit best{0.0f, fit.zero, 0.0f};
  if (fit.scale == 0.0f || common == 0.0f) return best;
  const float near = factor_of(std::fabs(fit.scale), common);
  for (float beside : {0.0f, -1.0f, 1.0f}) {
    const float factor = std::min(std::max(near + beside, 1.0f), static_cast<float>(kMostFactor));
    attempt(group, std::copysign(factor * common, fit.scale), fit.zero, best);
  }
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
                     int super_size, uint8_t* codes, uint16_t* scales, uint8_t* zeros) {
  const int64_t groups = (cols + group_size - 1) / group_size, bytes = (cols * bits + 7) / 8;
  const int64_t together = super_size ? super_size / group_size : 1;
  Pool::instance().run((rows + 15) / 16, [&](int64_t unit) {
    Group group;
    group.size = group_size;
    group.top = static_cast<float>((1 << bits) - 1);
    Fit fits[kLongestGroup / 32];
    float energies[kLongestGroup / 32], low, high;
    const auto take_group = [&](int64_t row, int64_t g) {
      const int64_t left = std::min<int64_t>(group_size, cols - g * group_size);
      take(group, weight, is_bf16, row * cols + g * group_size, left, low, high);
      return left;
    };
    const auto put = [&](int64_t row, int64_t g, const Fit& fit, int64_t left) {
      put_group_codes(group, fit, bits, left, codes + row * bytes + g * group_size * bits / 8);
      scales[row * groups + g] = float_to_half(fit.scale);
      if (!symmetric) zeros[row * groups + g] = static_cast<uint8_t>(fit.zero);
    };
    for (int64_t row = unit * 16; row < std::min(rows, unit * 16 + 16); row++)
      for (int64_t first = 0; first < groups; first += together) {
        const int64_t num = std::min(together, groups - first);
        for (int64_t i = 0; i < num; i++) {
          const int64_t left = take_group(row, first + i);
          fits[i] = symmetric ? symmetric_fit(group, low, high, bits) : asymmetric_fit(group, low, high, bits);
          if (!super_size) put(row, first + i, fits[i], left);
          else energies[i] = energy(group, fits[i]);
        }
        if (!super_size) continue;
        const float common = common_scale(fits, energies, num);
        for (int64_t i = 0; i < num; i++) {
          const int64_t left = take_group(row, first + i);
          put(row, first + i, of_common(group, fits[i], common), left);
        }
      }
  });
}

}  // namespace TURNOUT_ISA
