// What is done to each row of a step by itself: norms, sums, positions; and maps whichever way their weights lie.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"
#include "mixture.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Calls work(row) for every row; many of them are shared among the threads, a few at a time.
template <class Work>
static void for_rows(int64_t num_rows, const Work& work) {
  constexpr int64_t kOfUnit = 8;
  run_if_many(num_rows, ceil_div(num_rows, kOfUnit), [&](int64_t unit) {
    for (int64_t row = unit * kOfUnit; row < std::min(num_rows, (unit + 1) * kOfUnit); row++) work(row);
  });
}

// `offset` is added to the weights.
static void rms_norm(const bf16* x, const bf16* weight, bf16* out, int64_t width, float eps, float offset = 0.0f) {
  F16 sixteen = zero_f();
  float squares[16], total = 0.0f;
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    const F16 wide = load_wide(x + i);
    sixteen = fma(sixteen, wide, wide);
  }
  for (; i < width; i++) total += widen(x[i]) * widen(x[i]);
  store_f(squares, sixteen);
  for (float square : squares) total += square;
  const float factor = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
  const F16 factors = splat_f(factor), offsets = splat_f(offset);
  for (i = 0; i + 16 <= width; i += 16)
    store_narrow16(out + i, mul(mul(load_wide(x + i), factors), add(load_wide(weight + i), offsets)));
  for (; i < width; i++) out[i] = narrow(widen(x[i]) * factor * (widen(weight[i]) + offset));
}

static void add_row(bf16* target, const bf16* more, int64_t width) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) store_narrow16(target + i, add(load_wide(target + i), load_wide(more + i)));
  for (; i < width; i++) target[i] = narrow(widen(target[i]) + widen(more[i]));
}

static void add(bf16* x, const bf16* more, int64_t num_rows, int64_t width) {
  for_rows(num_rows, [&](int64_t row) { add_row(x + row * width, more + row * width, width); });
}

// Each row plus the same one, or nothing.
static void add_bias(bf16* x, const bf16* bias, int64_t num_rows, int64_t width) {
  if (bias) for_rows(num_rows, [&](int64_t row) { add_row(x + row * width, bias, width); });
}

// Each row times the sigmoid of a number of its own, rounded like everything that torch gives back.
static void weigh(bf16* x, const bf16* logits, int64_t num_rows, int64_t width) {
  for_rows(num_rows, [&](int64_t row) {
    const float share = widen(narrow(1.0f / (1.0f + exp_(-widen(logits[row])))));
    for (int64_t i = row * width; i < (row + 1) * width; i++) x[i] = narrow(widen(x[i]) * share);
  });
}

static void map_or_rows(const Panels* panels, const bf16* rows, const bf16* x, void* out, int out_is_float, int64_t T,
                        int64_t O, int64_t K) {
  if (panels) return map(*panels, x, out, out_is_float, T);
  linear(rows, x, out, out_is_float, T, O, K);
}

// Turns the first `turning` values of one head in place: pairs (i, i + half), or pairs (2i, 2i + 1), which come out so.
static void turn(bf16* head, const bf16* cos, const bf16* sin, int64_t turning, bool interleaved) {
  const int64_t half = turning / 2;
  if (interleaved) {
    static thread_local std::vector<bf16> pairs;
    pairs.assign(head, head + turning);
    for (int64_t i = 0; i < half; i++) head[i] = pairs[2 * i], head[half + i] = pairs[2 * i + 1];
  }
  bf16 *lows = head, *highs = head + half;
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const F16 low = load_wide(lows + i), high = load_wide(highs + i), c = load_wide(cos + i), s = load_wide(sin + i);
    store_narrow16(lows + i, subtract(rounded(mul(low, c)), rounded(mul(high, s))));
    store_narrow16(highs + i, add(rounded(mul(high, c)), rounded(mul(low, s))));
  }
  for (; i < half; i++) {
    const float low = widen(lows[i]), high = widen(highs[i]), c = widen(cos[i]), s = widen(sin[i]);
    lows[i] = narrow(widen(narrow(low * c)) - widen(narrow(high * s)));
    highs[i] = narrow(widen(narrow(high * c)) + widen(narrow(low * s)));
  }
}

}  // namespace TURNOUT_ISA
