// Sixteen lanes of float32 or int32, whatever the width of the registers: one row of a panel each.
//
// A panel step is 64 bytes: for each of sixteen rows four bytes, which are 2 bfloat16, 4 codes of 8 bits or 8 of 4 bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace TURNOUT_ISA {

static inline uint32_t load32(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = (half >> 10) & 31u;
  uint32_t bits, mantissa = half & 0x3ffu;
  if (exponent == 31)
    bits = sign | 0x7f800000u | (mantissa << 13);
  else if (exponent)
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  else {
    // Subnormal: mantissa · 2^-24, exact in float32.
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
// Rounds to nearest even; of finite numbers up to the largest of float16.
static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits >= 0x38800000u) return static_cast<uint16_t>(sign | ((bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13));
  // Subnormal: beside a half the last place of float32 is 2^-24.
  float near;
  std::memcpy(&near, &bits, 4);
  near += 0.5f;
  std::memcpy(&bits, &near, 4);
  return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
}

// How many inputs share one pass over a panel.
#if defined(TURNOUT_INPUTS)
// Fewer sizes to compile, for the sanitizers.
constexpr int kInputs = TURNOUT_INPUTS;
#elif defined(__AVX512VNNI__)
// As many as leave the sums in registers.
constexpr int kInputs = 12;
#else
// Products want registers of their own; where sums have none either, weights that are spread once for six still pay.
constexpr int kInputs = 6;
#endif

}  // namespace TURNOUT_ISA

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
namespace TURNOUT_ISA {

using F16 = __m512;
using I16 = __m512i;
static inline F16 zero_f() { return _mm512_setzero_ps(); }
static inline F16 splat_f(float x) { return _mm512_set1_ps(x); }
static inline I16 splat_i(int32_t x) { return _mm512_set1_epi32(x); }
static inline I16 load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline F16 load_f(const float* p) { return _mm512_loadu_ps(p); }
static inline void store_f(float* p, F16 x) { _mm512_storeu_ps(p, x); }
static inline F16 to_float(I16 x) { return _mm512_cvtepi32_ps(x); }
static inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
static inline F16 fma(F16 acc, F16 a, F16 b) { return _mm512_fmadd_ps(a, b, acc); }
static inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
static inline F16 subtract(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
// Of these two b is taken where a is NaN.
static inline F16 lesser(F16 a, F16 b) { return _mm512_min_ps(a, b); }
static inline F16 greater(F16 a, F16 b) { return _mm512_max_ps(a, b); }
static inline float greatest_of(F16 x) { return _mm512_reduce_max_ps(x); }
// Lane i: the greatest of vector i, of sixteen.
static inline F16 greatest_of_each(const F16* x) {
  F16 pairs[8], fours[4], eights[2];
  for (int i = 0; i < 8; i++)
    pairs[i] = greater(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  for (int i = 0; i < 4; i++) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = greater(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto halved = [](F16 a, F16 b) { return greater(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)); };
  for (int i = 0; i < 2; i++) eights[i] = halved(fours[2 * i], fours[2 * i + 1]);
  return halved(eights[0], eights[1]);
}
static inline float sum_of(F16 x) { return sum512(x); }
static inline void sums_of_four(const F16* x, float* out) { sum512x4(x, out); }
// x where it is below a bound, else -inf.
static inline F16 if_below(F16 x, F16 bound) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), _mm512_cmp_ps_mask(x, bound, _CMP_LT_OQ), x);
}
// A bit for each lane in which both are equal.
static inline uint32_t equal_bits(F16 a, F16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
// 2^n where the last bits of x hold n, from -127, which gives 0, to 127.
static inline F16 two_to_last_bits(F16 x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127)), 23));
}
// 1 / x of numbers from 1 up, to two units in the last place: a quotient takes as long as eight products. Of an infinite one 0, which
// is not to be multiplied by it.
static inline F16 reciprocal(F16 x) {
  const F16 about = _mm512_rcp14_ps(x), finite = lesser(_mm512_set1_ps(3.4028235e38f), x);
  return _mm512_mul_ps(about, _mm512_fnmadd_ps(finite, about, _mm512_set1_ps(2.0f)));
}
// 32 numbers as bfloat16, rounded to nearest even.
static inline void store_narrow(bf16* p, F16 low, F16 high) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
#else
  float wide[32];
  _mm512_storeu_ps(wide, low);
  _mm512_storeu_ps(wide + 16, high);
  for (int i = 0; i < 32; i++) p[i] = narrow(wide[i]);
#endif
}
// Sixteen numbers as bfloat16.
static inline void store_narrow16(bf16* p, F16 x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
#else
  float wide[16];
  _mm512_storeu_ps(wide, x);
  for (int i = 0; i < 16; i++) p[i] = narrow(wide[i]);
#endif
}
static inline I16 mul(I16 a, I16 b) { return _mm512_mullo_epi32(a, b); }
static inline I16 add(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
// Word s of row r, of sixteen rows of sixteen words, to word r of step s; steps are `pace` bytes apart.
static inline void transpose_words(const uint8_t* const* rows, uint8_t* out, int64_t pace) {
  __m512i x[16], y[16];
  for (int r = 0; r < 16; r += 2) {
    const __m512i a = load_words(rows[r]), b = load_words(rows[r + 1]);
    x[r] = _mm512_unpacklo_epi32(a, b);
    x[r + 1] = _mm512_unpackhi_epi32(a, b);
  }
  // Of four rows the words 4q + i of each quarter q.
  for (int r = 0; r < 16; r += 4)
    for (int i = 0; i < 2; i++) {
      y[r + 2 * i] = _mm512_unpacklo_epi64(x[r + i], x[r + 2 + i]);
      y[r + 2 * i + 1] = _mm512_unpackhi_epi64(x[r + i], x[r + 2 + i]);
    }
  for (int i = 0; i < 4; i++) {
    const __m512i a = _mm512_shuffle_i32x4(y[i], y[4 + i], 0x88), b = _mm512_shuffle_i32x4(y[8 + i], y[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(y[i], y[4 + i], 0xdd), d = _mm512_shuffle_i32x4(y[8 + i], y[12 + i], 0xdd);
    _mm512_storeu_si512(out + i * pace, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(out + (8 + i) * pace, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(out + (4 + i) * pace, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(out + (12 + i) * pace, _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}
static inline F16 load_wide(const bf16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
static inline F16 rounded(F16 x) {
#if defined(__AVX512BF16__)
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
#else
  bf16 narrowed[16];
  store_narrow16(narrowed, x);
  return load_wide(narrowed);
#endif
}
// 32 bfloat16: those in even places, and those in odd ones.
static inline void load_apart(const bf16* p, F16& even, F16& odd) {
  const __m512i both = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}
// The same of 32 float32.
static inline void load_apart(const float* p, F16& even, F16& odd) {
  const __m512 low = _mm512_loadu_ps(p), high = _mm512_loadu_ps(p + 16);
  const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  even = _mm512_permutex2var_ps(low, evens, high);
  odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), high);
}
static inline F16 load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline I16 load_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline I16 subtract_bytes(I16 a, I16 b) { return _mm512_sub_epi8(a, b); }
// 32 bytes as two words of 16 bits a lane; words multiplied, shifted right; the lower or upper word twice, the byte of either fourfold.
static inline I16 load_byte_pairs(const uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline I16 mul_words(I16 a, I16 b) { return _mm512_mullo_epi16(a, b); }
static inline I16 upper_nibbles_of_words(I16 x) { return _mm512_srli_epi16(x, 4); }
template <int kWord>
static inline I16 word_twice(I16 x) {
  constexpr char a = 2 * kWord, b = a + 1;
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_set_epi8(12 + b, 12 + a, 12 + b, 12 + a, 8 + b, 8 + a, 8 + b, 8 + a, 4 + b,
                                                                    4 + a, 4 + b, 4 + a, b, a, b, a)));
}
template <int kWord>
static inline I16 byte_fourfold(I16 x) {
  constexpr char a = 2 * kWord;
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_set_epi8(12 + a, 12 + a, 12 + a, 12 + a, 8 + a, 8 + a, 8 + a, 8 + a, 4 + a,
                                                                    4 + a, 4 + a, 4 + a, a, a, a, a)));
}
// acc += the two products of words, signed, in each lane.
static inline I16 dot_words(I16 acc, I16 w, uint32_t x) {
  const I16 both = _mm512_set1_epi32(static_cast<int32_t>(x));
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(both));
  return acc;
#else
  return _mm512_add_epi32(acc, _mm512_madd_epi16(w, both));
#endif
}
static inline I16 low_nibbles(I16 x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline I16 high_nibbles(I16 x) { return _mm512_and_si512(_mm512_srli_epi32(x, 4), _mm512_set1_epi8(15)); }
// acc += the two products of bfloat16 in each lane.
static inline F16 dot_bf16(F16 acc, I16 w, uint32_t x) {
  const I16 both = _mm512_set1_epi32(static_cast<int32_t>(x));
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)both);
#else
  const I16 high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  acc = fma(acc, _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
  return fma(acc, _mm512_castsi512_ps(_mm512_and_si512(w, high)), _mm512_castsi512_ps(_mm512_and_si512(both, high)));
#endif
}
// acc += the four products of an unsigned and a signed byte in each lane; exact.
static inline I16 dot_bytes(I16 acc, I16 w, uint32_t x) {
  const I16 all = _mm512_set1_epi32(static_cast<int32_t>(x));
#if defined(__AVX512VNNI__)
  // As an intrinsic gcc 12 copies sums from one register, or the stack, to another at each product.
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(all));
  return acc;
#else
  // Pairs of 16 bits: vpmaddubsw would saturate.
  const I16 even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)),
                                     _mm512_srai_epi16(_mm512_slli_epi16(all, 8), 8));
  const I16 odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(all, 8));
  return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
#endif
}
// The same of codes of 4 bits: `low` with `first` and `high` with `second`.
static inline I16 dot_nibbles(I16 acc, I16 low, uint32_t first, I16 high, uint32_t second) {
#if defined(__AVX512VNNI__)
  return dot_bytes(dot_bytes(acc, low, first), high, second);
#else
  // Two products in 16 bits are 3,840 at most.
  const I16 pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, splat_i(static_cast<int32_t>(first))),
                                     _mm512_maddubs_epi16(high, splat_i(static_cast<int32_t>(second))));
  return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

}  // namespace TURNOUT_ISA
#else
#include "vec16_parts.h"
#endif
