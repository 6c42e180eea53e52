// Products of a few inputs with two panels at a time; sums in float32, or exactly in int32 within a group of codes.
#pragma once
#include "each.h"
#include "factored.h"
#include "inputs.h"
#include "streamed_codes.h"
#include "tiles.h"
#include "twelve_bits.h"
#include "vec16.h"

namespace TURNOUT_ISA {

template <int N, bool kTwelve>
static void multiply_bf16(const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x, float* out) {
  F16 acc[N][2];
  each<N>([&](auto n) TURNOUT_INLINE { acc[n][0] = acc[n][1] = zero_f(); });
  const uint8_t* words = x.words;
  Steps<kTwelve> from(m, panel, next);
  const int64_t all = m.steps() * kStepBytes;
  for (int64_t begin = 0; begin < all; begin += kChunkBytes) {
    const uint8_t *weights = from.take(), *ahead = from.ahead();
    const int64_t size = std::min(kChunkBytes, all - begin);
    for (int64_t at = 0; at < size; at += kStepBytes, words += N * 4) {
      const I16 a = load_words(weights + at), b = load_words(weights + at + 64);
      if constexpr (!kTwelve) {
        __builtin_prefetch(ahead + at);
        __builtin_prefetch(ahead + at + 64);
      }
      each<N>([&](auto n) TURNOUT_INLINE {
        const uint32_t both = load32(words + n * 4);
        acc[n][0] = dot_bf16(acc[n][0], a, both);
        acc[n][1] = dot_bf16(acc[n][1], b, both);
      });
    }
  }
  each<N>([&](auto n) TURNOUT_INLINE {
    store_f(out + n * 32, acc[n][0]);
    store_f(out + n * 32 + 16, acc[n][1]);
  });
}

template <int N, int kBits, bool kZeros>
static void multiply_codes(const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x, float* out) {
  // Totals of few inputs stay in registers; of many in the cache, for the sums of a group need the registers more.
  constexpr bool kKept = 2 * N <= kInputs;
  F16 total[kKept ? N : 1][2];
  if constexpr (kKept)
    each<N>([&](auto n) TURNOUT_INLINE { total[n][0] = total[n][1] = zero_f(); });
  else
    std::memset(out, 0, N * 32 * sizeof(float));
  constexpr int64_t kHead = kZeros ? 128 : 64;
  const int64_t group_bytes = m.group_bytes();
  const uint8_t *words = x.words, *end = panel + m.panel_bytes();
  const int32_t* offsets = x.offsets;
  const float* factors = x.scales;
  for (; panel < end; panel += group_bytes, offsets += N, factors += N) {
    const uint8_t* ahead = ahead_of(panel, end, next);
    const int64_t size = std::min(group_bytes, end - panel);
    __builtin_prefetch(ahead);
    // The zero point's part first: codes are unsigned as they are stored.
    I16 acc[N][2];
    if constexpr (kZeros) {
      __builtin_prefetch(ahead + 64);
      const I16 zero0 = load_bytes(panel + 64), zero1 = load_bytes(panel + 80);
      each<N>([&](auto n) TURNOUT_INLINE {
        acc[n][0] = mul(zero0, splat_i(offsets[n]));
        acc[n][1] = mul(zero1, splat_i(offsets[n]));
      });
    } else {
      each<N>([&](auto n) TURNOUT_INLINE { acc[n][0] = acc[n][1] = splat_i(offsets[n]); });
    }
    int64_t at = kHead;
    do {
      const I16 a = load_words(panel + at), b = load_words(panel + at + 64);
      fetch_line<kTiles>(ahead + at, panel + at);
      fetch_line<kTiles>(ahead + at + 64, panel + at + 64);
      if constexpr (kBits == 8) {
        each<N>([&](auto n) TURNOUT_INLINE {
          const uint32_t four = load32(words + n * 4);
          acc[n][0] = dot_bytes(acc[n][0], a, four);
          acc[n][1] = dot_bytes(acc[n][1], b, four);
        });
      } else {
        const I16 low_a = low_nibbles(a), low_b = low_nibbles(b), high_a = high_nibbles(a), high_b = high_nibbles(b);
        each<N>([&](auto n) TURNOUT_INLINE {
          const uint32_t first = load32(words + n * 4), second = load32(words + (N + n) * 4);
          acc[n][0] = dot_nibbles(acc[n][0], low_a, first, high_a, second);
          acc[n][1] = dot_nibbles(acc[n][1], low_b, first, high_b, second);
        });
      }
      at += 128, words += N * (kBits == 8 ? 4 : 8);
    } while (at < size);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
    const F16 scale0 = load_half(scales), scale1 = load_half(scales + 16);
    each<N>([&](auto n) TURNOUT_INLINE {
      const F16 factor = splat_f(factors[n]);
      if constexpr (kKept) {
        total[n][0] = fma(total[n][0], mul(to_float(acc[n][0]), factor), scale0);
        total[n][1] = fma(total[n][1], mul(to_float(acc[n][1]), factor), scale1);
      } else {
        float* sum = out + n * 32;
        store_f(sum, fma(load_f(sum), mul(to_float(acc[n][0]), factor), scale0));
        store_f(sum + 16, fma(load_f(sum + 16), mul(to_float(acc[n][1]), factor), scale1));
      }
    });
    // Without it gcc keeps the totals of a group in registers that it has not, and every sum on the stack.
    if constexpr (!kKept) asm volatile("" ::: "memory");
  }
  if constexpr (kKept)
    each<N>([&](auto n) TURNOUT_INLINE {
      store_f(out + n * 32, total[n][0]);
      store_f(out + n * 32 + 16, total[n][1]);
    });
}

// out[n * 32 + lane] for `num` inputs, at most kInputs; `next` is read after this panel.
static inline void multiply_in_vectors(int num, const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x,
                                       float* out) {
#define TURNOUT_CASE(N)                                                                \
  case N:                                                                              \
    if constexpr (N <= kInputs && !in_tiles(8, N)) {                                   \
      if (m.bits == 8 && m.has_zeros) return multiply_codes<N, 8, true>(m, panel, next, x, out);  \
      if (m.bits == 8) return multiply_codes<N, 8, false>(m, panel, next, x, out);     \
      if (m.has_factors) return multiply_factored<N>(m, panel, next, x, out);          \
      if (m.bits == 4 && m.has_zeros) return multiply_codes<N, 4, true>(m, panel, next, x, out);  \
      if (m.bits == 4) return multiply_codes<N, 4, false>(m, panel, next, x, out);     \
    }                                                                                  \
    if constexpr (N <= kInputs && !in_tiles(16, N))                                    \
      return m.strays ? multiply_bf16<N, true>(m, panel, next, x, out) : multiply_bf16<N, false>(m, panel, next, x, out); \
    break;
  switch (num) {
    TURNOUT_CASE(1) TURNOUT_CASE(2) TURNOUT_CASE(3) TURNOUT_CASE(4) TURNOUT_CASE(5) TURNOUT_CASE(6)
    TURNOUT_CASE(7) TURNOUT_CASE(8) TURNOUT_CASE(9) TURNOUT_CASE(10) TURNOUT_CASE(11) TURNOUT_CASE(12)
  }
#undef TURNOUT_CASE
}

// A panel that `count` lots of inputs are multiplied by, one after the other; `next` is read after it.
class Multiplied {
 public:
  Multiplied(const Panels& m, const uint8_t* panel, const uint8_t* next, int64_t count)
      : m_(m), panel_(panel), next_(next), is_only_(count == 1), left_(count)
#if defined(TURNOUT_TILE_ZERO)
      , tiles_(m, panel, next, count)
#endif
  {}

  // out[n * 32 + lane] for `num` inputs; it has room for kMost.
  void by(int num, const Operand& x, float* out) {
    const auto nothing = [](int, int) {};
    by(num, x, out, 0, nothing);
  }

  // out[(row - first row) * 32 + lane] for the rows of all lots, `tiles`; it has room for kMost more. Meanwhile rows(first, end) until
  // `num_rows`, which do not need it, are seen to, in the shadow of the products.
  template <class OperandOf, class Rows>
  void by_all(const Tile* tiles, const OperandOf& operand_of, float* out, int num_rows, const Rows& rows) {
#if defined(TURNOUT_TILE_ZERO)
    if ((m_.bits == 16 || is_wide(m_)) && left_ > 1 && in_tiles(m_.bits, tiles->num)) {
      Meanwhile<Rows> meanwhile{rows, num_rows, pace_of(num_rows, left_ * tiles_.tiles_of_k())};
      tiles_.multiply_all(tiles, operand_of, out, meanwhile);
      meanwhile.rest();
      // The last lot may be one for vectors.
      const Tile& last = tiles[left_ - 1];
      if (!in_tiles(m_.bits, last.num))
        multiply_in_vectors(last.num, m_, panel_, next_, operand_of(last), out + (last.first - tiles->first) * 32);
      return;
    }
#endif
    for (const Tile* tile = tiles; left_; tile++, num_rows = 0)
      by(tile->num, operand_of(*tile), out + (tile->first - tiles->first) * 32, num_rows, rows);
  }

 private:
  const Panels& m_;
  const uint8_t *panel_, *next_;
  const bool is_only_;
  int64_t left_;
#if defined(TURNOUT_TILE_ZERO)
  PanelInTiles tiles_;
#endif

  static int pace_of(int64_t num_rows, int64_t steps) { return static_cast<int>((num_rows + steps - 1) / std::max<int64_t>(1, steps)); }

  template <class Rows>
  void by(int num, const Operand& x, float* out, int num_rows, const Rows& rows) {
    Meanwhile<Rows> meanwhile{rows, num_rows, pace_of(num_rows, m_.steps() / 16)};
    left_--;
#if defined(TURNOUT_TILE_ZERO)
    if (is_only_ && in_stream(m_, num))
      stream_codes(num, m_, panel_, next_, x, out, meanwhile);
    else if (in_tiles(m_.bits, num))
      tiles_.multiply(num, x, out, meanwhile);
    else
#endif
      multiply_in_vectors(num, m_, panel_, left_ ? panel_ : next_, x, out);
    meanwhile.rest();
  }
};

}  // namespace TURNOUT_ISA
