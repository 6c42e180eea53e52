// Products of a few inputs with two panels at a time; sums in float32, or exactly in int32 within a group of codes.
#pragma once
#include <type_traits>
#include <utility>

#include "inputs.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Two panels and, for each of some inputs, its row: what one call of a product works on.
struct Tile {
  const Panels* panels;
  // Matrix and panel of the first and the second half.
  int64_t stack[2], panel[2];
  const Inputs* inputs;
  // Which rows of the inputs.
  const int64_t* rows;
};

constexpr int64_t kAheadBytes = 2048;

#define TURNOUT_INLINE __attribute__((always_inline))

// Calls step(0) to step(N - 1), each number a type of its own: with plain loops gcc 12 keeps the sums of codes in memory.
template <class Step, int... I>
TURNOUT_INLINE static inline void each_of(const Step& step, std::integer_sequence<int, I...>) {
  (step(std::integral_constant<int, I>()), ...);
}
template <int N, class Step>
TURNOUT_INLINE static inline void each(const Step& step) {
  each_of(step, std::make_integer_sequence<int, N>());
}

template <int N>
static void multiply_bf16(const Tile& tile, float* out) {
  const Panels& m = *tile.panels;
  const uint8_t* w[2] = {m.panel(tile.stack[0], tile.panel[0]), m.panel(tile.stack[1], tile.panel[1])};
  const uint8_t* x[N];
  F16 acc[N][2];
  each<N>([&](auto n) TURNOUT_INLINE {
    x[n] = tile.inputs->row(tile.rows[n]);
    acc[n][0] = acc[n][1] = zero_f();
  });
  const int64_t steps = m.steps();
  for (int64_t s = 0; s < steps; s++) {
    const I16 w0 = load_words(w[0] + s * 64), w1 = load_words(w[1] + s * 64);
    __builtin_prefetch(w[0] + s * 64 + kAheadBytes);
    __builtin_prefetch(w[1] + s * 64 + kAheadBytes);
    each<N>([&](auto n) TURNOUT_INLINE {
      const uint32_t both = load32(x[n] + s * 4);
      acc[n][0] = dot_bf16(acc[n][0], w0, both);
      acc[n][1] = dot_bf16(acc[n][1], w1, both);
    });
  }
  each<N>([&](auto n) TURNOUT_INLINE {
    store_f(out + n * 32, acc[n][0]);
    store_f(out + n * 32 + 16, acc[n][1]);
  });
}

template <int N, int kBits>
static void multiply_codes(const Tile& tile, float* out) {
  const Panels& m = *tile.panels;
  const Inputs& in = *tile.inputs;
  const uint8_t* w[2];
  int64_t meta[2];
  for (int h = 0; h < 2; h++) {
    w[h] = m.panel(tile.stack[h], tile.panel[h]);
    meta[h] = m.meta(tile.stack[h], tile.panel[h]);
  }
  const uint8_t* x[N];
  each<N>([&](auto n) TURNOUT_INLINE { x[n] = in.row(tile.rows[n]); });
  // Totals stay in the cache: registers are worth more to the sums of a group.
  std::memset(out, 0, N * 32 * sizeof(float));
  constexpr int64_t kCols = 32 / kBits;
  const int64_t groups = m.groups(), steps = m.steps(), steps_of_group = m.group / kCols;
  for (int64_t g = 0; g < groups; g++) {
    // The zero point's part first: codes are unsigned as they are stored.
    I16 zero0 = splat_i(1 << (kBits - 1)), zero1 = zero0;
    if (m.zeros) {
      zero0 = load_bytes(m.zeros + meta[0] + g * 16);
      zero1 = load_bytes(m.zeros + meta[1] + g * 16);
    }
    I16 acc[N][2];
    each<N>([&](auto n) TURNOUT_INLINE {
      const I16 sum = splat_i(-in.sums[tile.rows[n] * groups + g]);
      acc[n][0] = mul(zero0, sum);
      acc[n][1] = mul(zero1, sum);
    });
    const int64_t end = std::min(steps, (g + 1) * steps_of_group);
    for (int64_t s = g * steps_of_group; s < end; s++) {
      const I16 w0 = load_words(w[0] + s * 64), w1 = load_words(w[1] + s * 64);
      __builtin_prefetch(w[0] + s * 64 + kAheadBytes);
      __builtin_prefetch(w[1] + s * 64 + kAheadBytes);
      if constexpr (kBits == 8) {
        each<N>([&](auto n) TURNOUT_INLINE {
          const uint32_t four = load32(x[n] + s * 4);
          acc[n][0] = dot_bytes(acc[n][0], w0, four);
          acc[n][1] = dot_bytes(acc[n][1], w1, four);
        });
      } else {
        const I16 low0 = low_nibbles(w0), low1 = low_nibbles(w1), high0 = high_nibbles(w0), high1 = high_nibbles(w1);
        each<N>([&](auto n) TURNOUT_INLINE {
          const uint32_t first = load32(x[n] + s * 8), second = load32(x[n] + s * 8 + 4);
          acc[n][0] = dot_bytes(dot_bytes(acc[n][0], low0, first), high0, second);
          acc[n][1] = dot_bytes(dot_bytes(acc[n][1], low1, first), high1, second);
        });
      }
    }
    const F16 scale0 = load_half(m.scales + meta[0] + g * 16), scale1 = load_half(m.scales + meta[1] + g * 16);
    each<N>([&](auto n) TURNOUT_INLINE {
      const F16 factor = splat_f(in.scales[tile.rows[n] * groups + g]);
      float* total = out + n * 32;
      store_f(total, fma(load_f(total), mul(to_float(acc[n][0]), factor), scale0));
      store_f(total + 16, fma(load_f(total + 16), mul(to_float(acc[n][1]), factor), scale1));
    });
  }
}

// out[n * 32 + 16 * half + lane] for `num` inputs, at most kInputs.
static inline void multiply(int num, const Tile& tile, float* out) {
#define TURNOUT_CASE(N)                                                   \
  case N:                                                                 \
    if constexpr (N <= kInputs) {                                         \
      if (tile.panels->bits == 16) return multiply_bf16<N>(tile, out);    \
      if (tile.panels->bits == 8) return multiply_codes<N, 8>(tile, out); \
      return multiply_codes<N, 4>(tile, out);                             \
    }                                                                     \
    break;
  switch (num) {
    TURNOUT_CASE(1) TURNOUT_CASE(2) TURNOUT_CASE(3) TURNOUT_CASE(4) TURNOUT_CASE(5) TURNOUT_CASE(6)
    TURNOUT_CASE(7) TURNOUT_CASE(8) TURNOUT_CASE(9) TURNOUT_CASE(10) TURNOUT_CASE(11) TURNOUT_CASE(12)
  }
#undef TURNOUT_CASE
}

}  // namespace TURNOUT_ISA
