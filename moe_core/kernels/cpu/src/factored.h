// Codes of 4 bits in wide groups, where each 32 columns have a whole factor: codes times factors are bytes, and a group's sum stays exact.
//
// A code is 0 to 15 and a factor 0 to 15, so that two codes in a word of 16 bits are multiplied at once and neither overflows its byte.
// What is taken off the codes, 7 or 8, is taken off the sums for a few inputs, and off the bytes where tiles want them signed.
// Source: the two levels of scales of QServe (Lin et al. 2024, arXiv 2405.04532), there with one for a row.
#pragma once
#include "each.h"
#include "inputs.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Of two times 32 columns and sixteen lanes: the factors, twice in a word, and what is taken off, times them.
struct Factors {
  I16 first, second, less;

  // `at` is the line of the two, of both halves of the lanes.
  Factors(const uint8_t* at, int half) {
    const I16 both = load_byte_pairs(at + half * 32), factors = low_nibbles(both);
    first = word_twice<0>(factors);
    second = word_twice<1>(factors);
    less = mul_words(factors, upper_nibbles_of_words(both));
  }
};

// The bytes of codes and factors up to `stop`, of 32 columns at most, times N inputs.
template <int N>
TURNOUT_INLINE static inline const uint8_t* add_factored(I16 (&acc)[N][2], const uint8_t* codes, const uint8_t* stop, I16 factor0, I16 factor1,
                                                  const uint8_t* words, const uint8_t* ahead) {
  for (; codes < stop; codes += 128, ahead += 128, words += N * 8) {
    const I16 a = load_words(codes), b = load_words(codes + 64);
    fetch_line<kTiles>(ahead, codes);
    fetch_line<kTiles>(ahead + 64, codes + 64);
    const I16 low_a = mul_words(low_nibbles(a), factor0), low_b = mul_words(low_nibbles(b), factor1);
    each<N>([&](auto n) TURNOUT_INLINE {
      const uint32_t first = load32(words + n * 4);
      acc[n][0] = dot_bytes(acc[n][0], low_a, first);
      acc[n][1] = dot_bytes(acc[n][1], low_b, first);
    });
    const I16 high_a = mul_words(high_nibbles(a), factor0), high_b = mul_words(high_nibbles(b), factor1);
    each<N>([&](auto n) TURNOUT_INLINE {
      const uint32_t second = load32(words + (N + n) * 4);
      acc[n][0] = dot_bytes(acc[n][0], high_a, second);
      acc[n][1] = dot_bytes(acc[n][1], high_b, second);
    });
  }
  return words;
}

// out[n * 32 + lane] of N inputs; `next` is read after this panel.
template <int N>
static void multiply_factored(const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x, float* out) {
  constexpr int64_t kHalf = 512;  // bytes of codes of 32 columns
  const int64_t group_bytes = m.group_bytes(), head = m.head_bytes(), pairs = m.pairs_of_group();
  const uint8_t *words = x.words, *end = panel + m.panel_bytes();
  const float* factors = x.scales;
  std::memset(out, 0, N * 32 * sizeof(float));
  for (const int32_t* offsets = x.offsets; panel < end; panel += group_bytes, factors += N, offsets += pairs * N) {
    const uint8_t* ahead = ahead_of(panel, end, next);
    for (int64_t i = 0; i < head; i += 64) __builtin_prefetch(ahead + i);
    I16 acc[N][2];
    each<N>([&](auto n) TURNOUT_INLINE { acc[n][0] = acc[n][1] = splat_i(0); });
    const uint8_t *codes = panel + head, *stop = panel + std::min(group_bytes, end - panel);
    const int32_t* offset = offsets;
    for (const uint8_t* at = panel + 64; codes < stop; at += 64, offset += N, codes += 2 * kHalf) {
      const Factors half0(at, 0), half1(at, 1);
      each<N>([&](auto n) TURNOUT_INLINE {
        acc[n][0] = dot_words(acc[n][0], half0.less, static_cast<uint32_t>(offset[n]));
        acc[n][1] = dot_words(acc[n][1], half1.less, static_cast<uint32_t>(offset[n]));
      });
      const uint8_t *middle = std::min(codes + kHalf, stop), *far = ahead + (codes - panel);
      words = add_factored<N>(acc, codes, middle, half0.first, half1.first, words, far);
      words = add_factored<N>(acc, middle, std::min(middle + kHalf, stop), half0.second, half1.second, words, far + kHalf);
    }
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
    const F16 scale0 = load_half(scales), scale1 = load_half(scales + 16);
    each<N>([&](auto n) TURNOUT_INLINE {
      const F16 factor = splat_f(factors[n]);
      float* sum = out + n * 32;
      store_f(sum, fma(load_f(sum), mul(to_float(acc[n][0]), factor), scale0));
      store_f(sum + 16, fma(load_f(sum + 16), mul(to_float(acc[n][1]), factor), scale1));
    });
  }
}

// A group's codes times their factors, signed, as tiles of bytes read them: (columns / 4, 32 lanes) of four, in whole tiles with zeros
// behind. `size` bytes of the group are there; what is read from memory is fetched before.
template <class Fetch>
static void widen_factored(const Panels& m, const uint8_t* group, int64_t size, uint8_t* to, const Fetch& fetch) {
  const uint8_t *codes = group + m.head_bytes(), *stop = group + size, *at = group + 64;
  for (; codes < stop; at += 64)
    for (int part = 0; part < 2; part++) {
      const Factors half0(at, 0), half1(at, 1);
      const I16 factor0 = part ? half0.second : half0.first, factor1 = part ? half1.second : half1.first;
      const I16 less0 = part ? byte_fourfold<1>(half0.less) : byte_fourfold<0>(half0.less);
      const I16 less1 = part ? byte_fourfold<1>(half1.less) : byte_fourfold<0>(half1.less);
      for (int i = 0; i < 4 && codes < stop; i++, codes += 128, to += 256) {
        fetch(codes);
        const I16 a = load_words(codes), b = load_words(codes + 64);
        const I16 four[4] = {subtract_bytes(mul_words(low_nibbles(a), factor0), less0), subtract_bytes(mul_words(low_nibbles(b), factor1), less1),
                             subtract_bytes(mul_words(high_nibbles(a), factor0), less0), subtract_bytes(mul_words(high_nibbles(b), factor1), less1)};
        std::memcpy(to, four, 256);
      }
    }
  const int64_t left = -(size - m.head_bytes()) * 2 & 2047;
  std::memset(to, 0, left);
}

}  // namespace TURNOUT_ISA
