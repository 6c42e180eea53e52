// What a training step does beside its products, forward and backward: each in one pass over rows of float32 or bfloat16, computed in float32.
// A row is the work of one thread, and sums over rows are made in stretches of a fixed number: threads change no bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "exponential.h"
#include "lanes.h"
#include "pool.h"
#include "routed.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Values of a row that are widened together: what is made of them stays in the first cache.
constexpr int64_t kStrip = 256;
constexpr int64_t kRowsOfUnit = 32;

static inline float value_of(float x) { return x; }
static inline float value_of(bf16 x) { return widen(x); }
static inline void put(float* to, float x) { *to = x; }
static inline void put(bf16* to, float x) { *to = narrow(x); }
static inline F16 sixteen(const float* p) { return load_f(p); }
static inline F16 sixteen(const bf16* p) { return load_wide(p); }

template <class T>
static inline void widen_strip(const T* __restrict x, float* __restrict out, int64_t num) {
  for (int64_t i = 0; i < num; i++) out[i] = value_of(x[i]);
}
template <class T>
static inline void narrow_strip(const float* __restrict x, T* __restrict out, int64_t num) {
  for (int64_t i = 0; i < num; i++) put(out + i, x[i]);
}

static inline float folded(F16 x) {
  float lanes[16], total = 0.0f;
  store_f(lanes, x);
  for (float lane : lanes) total += lane;
  return total;
}

template <class Work>
static void for_stretches(int64_t num_rows, int64_t of_unit, const Work& work) {
  turnout::Pool::instance().run(ceil_div(num_rows, of_unit), [&](int64_t unit) {
    work(unit, unit * of_unit, std::min(num_rows, (unit + 1) * of_unit));
  });
}

template <class T>
static float largest_of_row(const T* x, int64_t num) {
  float best = value_of(x[0]);
  int64_t i = 0;
  if (num >= 16) {
    F16 bests = sixteen(x);
    for (i = 16; i + 16 <= num; i += 16) bests = greater(sixteen(x + i), bests);
    float lanes[16];
    store_f(lanes, bests);
    for (float lane : lanes) best = lane > best ? lane : best;
  }
  for (; i < num; i++) best = value_of(x[i]) > best ? value_of(x[i]) : best;
  return best;
}

static inline void put_32(float* to, F16 low, F16 high) { store_f(to, low), store_f(to + 16, high); }
static inline void put_32(bf16* to, F16 low, F16 high) { store_narrow(to, low, high); }

// Cross-entropy of rows of logits; where `wants_errors`, these become factor · (softmax - one at the target) in their place.
template <class T>
static void head_errors_of(T* logits, const int64_t* targets, float* losses, float factor, bool wants_errors, int64_t R,
                           int64_t V) {
  for_stretches(R, 4, [&](int64_t, int64_t first, int64_t end) {
    const int64_t whole = V / 32 * 32;
    for (int64_t r = first; r < end; r++) {
      T* row = logits + r * V;
      const float top = largest_of_row(row, V), target = value_of(row[targets[r]]);
      const F16 tops = splat_f(top), to_base_two = splat_f(kLog2e);
      const auto power = [&](const T* x) TURNOUT_INLINE { return exp2_16(mul(subtract(sixteen(x), tops), to_base_two)); };
      F16 low = zero_f(), high = zero_f();
      for (int64_t v = 0; v < whole; v += 32) low = add(low, power(row + v)), high = add(high, power(row + v + 16));
      float total = folded(add(low, high));
      for (int64_t v = whole; v < V; v++) total += exp_(value_of(row[v]) - top);
      losses[r] = std::log(total) + top - target;
      if (!wants_errors) continue;
      const float scale = factor / total;
      const F16 scales = splat_f(scale);
      for (int64_t v = 0; v < whole; v += 32) put_32(row + v, mul(power(row + v), scales), mul(power(row + v + 16), scales));
      for (int64_t v = whole; v < V; v++) put(row + v, exp_(value_of(row[v]) - top) * scale);
      // At the target the difference is made before it is rounded.
      put(row + targets[r], factor * (exp_(target - top) / total - 1.0f));
    }
  });
}

// act = silu(gate) · up of rows that hold both.
template <class T>
static void swiglu_of(const T* both, T* act, int64_t R, int64_t F) {
  for_stretches(R, kRowsOfUnit, [&](int64_t, int64_t first, int64_t end) {
    alignas(64) float gate[kStrip], up[kStrip];
    for (int64_t r = first; r < end; r++)
      for (int64_t f = 0; f < F; f += kStrip) {
        const int64_t num = std::min(kStrip, F - f);
        widen_strip(both + r * 2 * F + f, gate, num);
        widen_strip(both + r * 2 * F + F + f, up, num);
        for (int64_t i = 0; i < num; i++) gate[i] = gate[i] / (1.0f + exp_(-gate[i])) * up[i];
        narrow_strip(gate, act + r * F + f, num);
      }
  });
}

// Of rows that count with a weight each: that weight's gradient <d_act, act>, the gradient of gate and up beside each other, and
// weight · act for the gradient of the map that follows. `d_both` and `act` may be null.
template <class T>
static void swiglu_back_of(const T* both, const T* d_act, const float* weights, T* d_both, T* act, float* d_weights,
                           int64_t R, int64_t F) {
  for_stretches(R, kRowsOfUnit, [&](int64_t, int64_t first, int64_t end) {
    alignas(64) float gate[kStrip], up[kStrip], share[kStrip], grad[kStrip], out[kStrip];
    for (int64_t r = first; r < end; r++) {
      const float weight = weights[r];
      F16 sums = zero_f();
      for (int64_t f = 0; f < F; f += kStrip) {
        const int64_t num = std::min(kStrip, F - f), at = r * 2 * F + f;
        widen_strip(both + at, gate, num);
        widen_strip(both + at + F, up, num);
        widen_strip(d_act + r * F + f, grad, num);
        for (int64_t i = num; i % 16; i++) grad[i] = out[i] = 0.0f;
        for (int64_t i = 0; i < num; i++) share[i] = 1.0f / (1.0f + exp_(-gate[i]));
        for (int64_t i = 0; i < num; i++) out[i] = gate[i] * share[i] * up[i];
        for (int64_t i = 0; i < num; i += 16) sums = fma(sums, load_f(grad + i), load_f(out + i));
        if (act) {
          for (int64_t i = 0; i < num; i++) out[i] *= weight;
          narrow_strip(out, act + r * F + f, num);
        }
        if (!d_both) continue;
        for (int64_t i = 0; i < num; i++) {
          const float scaled = grad[i] * weight;
          out[i] = scaled * up[i] * share[i] * (1.0f + gate[i] * (1.0f - share[i]));
          grad[i] = scaled * gate[i] * share[i];
        }
        narrow_strip(out, d_both + at, num);
        narrow_strip(grad, d_both + at + F, num);
      }
      d_weights[r] = folded(sums);
    }
  });
}

// out[t] = the sum over k of weight · rows[places[t][k]]; a place below 0 adds nothing, no weights are ones.
template <class T>
static void combine_of(const T* rows, const int64_t* places, const float* weights, T* out, int64_t tokens, int64_t k,
                       int64_t D) {
  for_stretches(tokens, kRowsOfUnit, [&](int64_t, int64_t first, int64_t end) {
    alignas(64) float total[kStrip];
    for (int64_t t = first; t < end; t++)
      for (int64_t d = 0; d < D; d += kStrip) {
        const int64_t num = std::min(kStrip, D - d);
        std::fill(total, total + num, 0.0f);
        for (const int64_t* place = places + t * k; place < places + (t + 1) * k; place++) {
          if (*place < 0) continue;
          const float weight = weights ? weights[*place] : 1.0f;
          const T* __restrict row = rows + *place * D + d;
          for (int64_t i = 0; i < num; i++) total[i] += weight * value_of(row[i]);
        }
        narrow_strip(total, out + t * D + d, num);
      }
  });
}

// Each row over the root of its mean square, times a weight for each column; factors[r] is what a row was multiplied with.
template <class T>
static void norm_of(const T* x, const T* weight, float eps, T* out, float* factors, int64_t R, int64_t D) {
  for_stretches(R, kRowsOfUnit, [&](int64_t, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; r++) {
      const T* __restrict row = x + r * D;
      F16 sums = zero_f();
      int64_t i = 0;
      for (; i + 16 <= D; i += 16) sums = fma(sums, sixteen(row + i), sixteen(row + i));
      float total = folded(sums);
      for (; i < D; i++) total += value_of(row[i]) * value_of(row[i]);
      const float factor = factors[r] = 1.0f / std::sqrt(total / static_cast<float>(D) + eps);
      T* __restrict to = out + r * D;
      for (i = 0; i < D; i++) put(to + i, value_of(row[i]) * factor * value_of(weight[i]));
    }
  });
}

// The gradients of the input and, unless it is null, of the weight (float32).
template <class T>
static void norm_back_of(const T* x, const T* weight, const T* d_out, const float* factors, T* d_x, float* d_weight,
                         int64_t R, int64_t D) {
  std::vector<float> parts(d_weight ? ceil_div(R, kRowsOfUnit) * D : 0, 0.0f);
  for_stretches(R, kRowsOfUnit, [&](int64_t unit, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; r++) {
      const T *__restrict row = x + r * D, *__restrict grad = d_out + r * D;
      const float factor = factors[r];
      F16 sums = zero_f();
      int64_t i = 0;
      for (; i + 16 <= D; i += 16) sums = fma(sums, mul(sixteen(row + i), sixteen(grad + i)), sixteen(weight + i));
      float total = folded(sums);
      for (; i < D; i++) total += value_of(row[i]) * value_of(grad[i]) * value_of(weight[i]);
      const float pull = total * factor * factor / static_cast<float>(D);
      T* __restrict to = d_x + r * D;
      for (i = 0; i < D; i++) put(to + i, factor * (value_of(grad[i]) * value_of(weight[i]) - value_of(row[i]) * pull));
      if (!d_weight) continue;
      float* __restrict part = parts.data() + unit * D;
      for (i = 0; i < D; i++) part[i] += value_of(grad[i]) * value_of(row[i]) * factor;
    }
  });
  if (!d_weight) return;
  std::fill(d_weight, d_weight + D, 0.0f);
  for (size_t at = 0; at < parts.size(); at += D)
    for (int64_t i = 0; i < D; i++) d_weight[i] += parts[at + i];
}

// Pairs (i, i + half) of each head turned by their token's angle, or back where `sign` is -1; tables (T, half).
template <class T>
static void turn_heads_of(const T* x, int64_t x_token, int64_t x_head, const T* cos, const T* sin, float sign, T* out,
                          int64_t out_token, int64_t tokens, int64_t H, int64_t half) {
  for_stretches(tokens, kRowsOfUnit, [&](int64_t, int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      const T *__restrict c = cos + t * half, *__restrict s = sin + t * half;
      for (int64_t h = 0; h < H; h++) {
        const T* __restrict head = x + t * x_token + h * x_head;
        T* __restrict to = out + t * out_token + h * 2 * half;
        for (int64_t i = 0; i < half; i++) {
          const float low = value_of(head[i]), high = value_of(head[half + i]);
          const float along = value_of(c[i]), across = sign * value_of(s[i]);
          put(to + i, low * along - high * across);
          put(to + half + i, high * along + low * across);
        }
      }
    }
  });
}

// The same for either type.
#define TURNOUT_FOR_BOTH(call)       \
  if (is_float) {                    \
    using T = float;                 \
    call;                            \
  } else {                           \
    using T = bf16;                  \
    call;                            \
  }
#define TURNOUT_IN(name) static_cast<const T*>(name)
#define TURNOUT_OUT(name) static_cast<T*>(name)

static void head_errors(void* logits, int is_float, const int64_t* targets, float* losses, float factor, int wants_errors,
                        int64_t R, int64_t V) {
  TURNOUT_FOR_BOTH(head_errors_of(TURNOUT_OUT(logits), targets, losses, factor, wants_errors != 0, R, V))
}
static void swiglu(const void* both, int is_float, void* act, int64_t R, int64_t F) {
  TURNOUT_FOR_BOTH(swiglu_of(TURNOUT_IN(both), TURNOUT_OUT(act), R, F))
}
static void swiglu_back(const void* both, const void* d_act, int is_float, const float* weights, void* d_both, void* act,
                        float* d_weights, int64_t R, int64_t F) {
  TURNOUT_FOR_BOTH(swiglu_back_of(TURNOUT_IN(both), TURNOUT_IN(d_act), weights, TURNOUT_OUT(d_both), TURNOUT_OUT(act),
                                  d_weights, R, F))
}
static void combine(const void* rows, int is_float, const int64_t* places, const float* weights, void* out, int64_t tokens,
                    int64_t k, int64_t D) {
  TURNOUT_FOR_BOTH(combine_of(TURNOUT_IN(rows), places, weights, TURNOUT_OUT(out), tokens, k, D))
}
static void norm(const void* x, const void* weight, int is_float, float eps, void* out, float* factors, int64_t R, int64_t D) {
  TURNOUT_FOR_BOTH(norm_of(TURNOUT_IN(x), TURNOUT_IN(weight), eps, TURNOUT_OUT(out), factors, R, D))
}
static void norm_back(const void* x, const void* weight, const void* d_out, int is_float, const float* factors, void* d_x,
                      float* d_weight, int64_t R, int64_t D) {
  TURNOUT_FOR_BOTH(norm_back_of(TURNOUT_IN(x), TURNOUT_IN(weight), TURNOUT_IN(d_out), factors, TURNOUT_OUT(d_x), d_weight, R, D))
}
static void turn_heads(const void* x, int is_float, int64_t x_token, int64_t x_head, const void* cos, const void* sin,
                       float sign, void* out, int64_t out_token, int64_t tokens, int64_t H, int64_t half) {
  TURNOUT_FOR_BOTH(turn_heads_of(TURNOUT_IN(x), x_token, x_head, TURNOUT_IN(cos), TURNOUT_IN(sin), sign, TURNOUT_OUT(out),
                                 out_token, tokens, H, half))
}
#undef TURNOUT_FOR_BOTH
#undef TURNOUT_IN
#undef TURNOUT_OUT

}  // namespace TURNOUT_ISA
