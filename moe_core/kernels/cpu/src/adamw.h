// AdamW on float32 masters in one pass: gradient, master and both moments are read once, the working weight is rounded beside.
// Every number is the work of one thread, and sums of squares are made in stretches of a fixed size: threads change no bit.
// Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
#pragma once
#include <cmath>
#include <cstdint>

#include "training.h"

namespace TURNOUT_ISA {

constexpr int64_t kNumbersOfUnit = 16384;

// `scale` multiplies the gradient; `decay` is 1 - rate · weight decay, `step` the rate over 1 - beta1^t, `root` that of 1 - beta2^t.
// `rest1` and `rest2` are 1 - beta1 and 1 - beta2, rounded once: 1 less a float32 of 0.999 would be off by 1e-5 of itself.
struct AdamWStep {
  float scale, decay, step, root, rest1, beta2, rest2, eps;
};

template <class W, class G>
static void adamw_of(W* working, const G* gradient, float* master, float* average, float* square, const AdamWStep& s, int64_t num) {
  for_stretches(num, kNumbersOfUnit, [&](int64_t, int64_t first, int64_t end) {
    W* __restrict to = working;
    const G* __restrict from = gradient;
    float *__restrict kept = master, *__restrict mean = average, *__restrict power = square;
    for (int64_t i = first; i < end; i++) {
      const float grad = value_of(from[i]) * s.scale;
      const float m = mean[i] + s.rest1 * (grad - mean[i]), v = s.beta2 * power[i] + s.rest2 * grad * grad;
      const float weight = kept[i] * s.decay - s.step * m / (std::sqrt(v) / s.root + s.eps);
      mean[i] = m, power[i] = v, kept[i] = weight;
      put(to + i, weight);
    }
  });
}

// One for each stretch of kNumbersOfUnit.
template <class T>
static void squares_of(const T* x, double* sums, int64_t num) {
  for_stretches(num, kNumbersOfUnit, [&](int64_t unit, int64_t first, int64_t end) {
    F16 total[4] = {zero_f(), zero_f(), zero_f(), zero_f()};
    int64_t i = first;
    for (; i + 64 <= end; i += 64)
      for (int part = 0; part < 4; part++) {
        const F16 value = sixteen(x + i + part * 16);
        total[part] = fma(total[part], value, value);
      }
    double sum = 0.0;
    for (const F16& part : total) sum += folded(part);
    for (; i < end; i++) sum += static_cast<double>(value_of(x[i])) * value_of(x[i]);
    sums[unit] = sum;
  });
}

static void adamw(void* working, int working_is_float, const void* gradient, int gradient_is_float, float* master, float* average,
                  float* square, const float* numbers, int64_t num) {
  const AdamWStep step{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]};
  const auto with = [&](auto* to) {
    if (gradient_is_float)
      adamw_of(to, static_cast<const float*>(gradient), master, average, square, step, num);
    else
      adamw_of(to, static_cast<const bf16*>(gradient), master, average, square, step, num);
  };
  if (working_is_float)
    with(static_cast<float*>(working));
  else
    with(static_cast<bf16*>(working));
}
static void squares(const void* x, int is_float, double* sums, int64_t num) {
  if (is_float)
    squares_of(static_cast<const float*>(x), sums, num);
  else
    squares_of(static_cast<const bf16*>(x), sums, num);
}

}  // namespace TURNOUT_ISA
