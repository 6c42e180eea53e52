// Sixteen lanes of float32 or int32, whatever the width of the registers: one row of a panel each.
//
// A panel step is 64 bytes: for each of sixteen rows four bytes, which are 2 bfloat16, 4 codes of 8 bits or 8 of 4 bits.
#pragma once
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

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// How many inputs share one pass over a panel: as many as leave the accumulators in registers.
#if defined(TURNOUT_INPUTS)
// Fewer sizes to compile, for the sanitizers.
constexpr int kInputs = TURNOUT_INPUTS;
#elif defined(__AVX512VNNI__)
constexpr int kInputs = 12;
#else
// Products without VNNI want registers of their own.
constexpr int kInputs = 6;
#endif
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
static inline I16 mul(I16 a, I16 b) { return _mm512_mullo_epi32(a, b); }
static inline I16 add(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
static inline F16 load_wide(const bf16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
static inline F16 load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline I16 load_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
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
#else
#if defined(__AVX2__)
constexpr int kPart = 8;
#else
constexpr int kPart = 4;
#endif
constexpr int kInputs = 2;
constexpr int kParts = 16 / kPart;
typedef float Fp __attribute__((vector_size(kPart * 4)));
typedef int32_t Ip __attribute__((vector_size(kPart * 4)));
struct F16 { Fp p[kParts]; };
struct I16 { Ip p[kParts]; };
#define TURNOUT_EACH for (int i = 0; i < kParts; i++)
static inline Fp part_f(float x) { return Fp{} + x; }
static inline Ip part_i(int32_t x) { return Ip{} + x; }
static inline F16 splat_f(float x) { F16 out; TURNOUT_EACH out.p[i] = part_f(x); return out; }
static inline F16 zero_f() { return splat_f(0.0f); }
static inline I16 splat_i(int32_t x) { I16 out; TURNOUT_EACH out.p[i] = part_i(x); return out; }
static inline I16 load_words(const uint8_t* p) { I16 out; std::memcpy(&out, p, 64); return out; }
static inline F16 load_f(const float* p) { F16 out; std::memcpy(&out, p, 64); return out; }
static inline void store_f(float* p, F16 x) { std::memcpy(p, &x, 64); }
static inline F16 to_float(I16 x) { F16 out; TURNOUT_EACH out.p[i] = __builtin_convertvector(x.p[i], Fp); return out; }
static inline F16 mul(F16 a, F16 b) { F16 out; TURNOUT_EACH out.p[i] = a.p[i] * b.p[i]; return out; }
static inline F16 add(F16 a, F16 b) { TURNOUT_EACH a.p[i] += b.p[i]; return a; }
static inline F16 subtract(F16 a, F16 b) { TURNOUT_EACH a.p[i] -= b.p[i]; return a; }
static inline F16 lesser(F16 a, F16 b) { TURNOUT_EACH a.p[i] = a.p[i] < b.p[i] ? a.p[i] : b.p[i]; return a; }
static inline F16 greater(F16 a, F16 b) { TURNOUT_EACH a.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i]; return a; }
static inline I16 add(I16 a, I16 b) { TURNOUT_EACH a.p[i] += b.p[i]; return a; }
static inline I16 mul(I16 a, I16 b) { I16 out; TURNOUT_EACH out.p[i] = a.p[i] * b.p[i]; return out; }
static inline Fp fma_part(Fp acc, Fp a, Fp b) {
#if defined(__FMA__)
  return (Fp)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)acc);
#else
  return acc + a * b;
#endif
}
static inline F16 fma(F16 acc, F16 a, F16 b) { TURNOUT_EACH acc.p[i] = fma_part(acc.p[i], a.p[i], b.p[i]); return acc; }
// Sixteen bfloat16.
static inline F16 load_wide(const bf16* p) {
  float wide[16];
  for (int i = 0; i < 16; i++) wide[i] = widen(p[i]);
  return load_f(wide);
}
static inline F16 load_half(const uint16_t* p) {
  F16 out;
#if defined(__F16C__)
  TURNOUT_EACH out.p[i] = (Fp)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * kPart)));
#else
  float wide[16];
  for (int i = 0; i < 16; i++) wide[i] = half_to_float(p[i]);
  std::memcpy(&out, wide, 64);
#endif
  return out;
}
static inline I16 load_bytes(const uint8_t* p) {
  int32_t wide[16];
  for (int i = 0; i < 16; i++) wide[i] = p[i];
  I16 out;
  std::memcpy(&out, wide, 64);
  return out;
}
static inline I16 low_nibbles(I16 x) { I16 out; TURNOUT_EACH out.p[i] = x.p[i] & 0x0f0f0f0f; return out; }
static inline I16 high_nibbles(I16 x) { I16 out; TURNOUT_EACH out.p[i] = (x.p[i] >> 4) & 0x0f0f0f0f; return out; }
static inline F16 dot_bf16(F16 acc, I16 w, uint32_t x) {
  const Fp low = part_f(widen(static_cast<bf16>(x))), high = part_f(widen(static_cast<bf16>(x >> 16)));
  TURNOUT_EACH {
    const Ip even = w.p[i] << 16, odd = w.p[i] & static_cast<int32_t>(0xffff0000u);
    acc.p[i] = fma_part(fma_part(acc.p[i], (Fp)even, low), (Fp)odd, high);
  }
  return acc;
}
static inline I16 dot_bytes(I16 acc, I16 w, uint32_t x) {
#if defined(__AVX2__)
  const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(x));
  const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), odd_x = _mm256_srai_epi16(all, 8);
  TURNOUT_EACH {
    const __m256i codes = (__m256i)w.p[i];
    // Pairs of 16 bits: vpmaddubsw would saturate.
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), even_x);
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd_x);
    acc.p[i] += (Ip)_mm256_add_epi32(even, odd);
  }
#else
  for (int byte = 0; byte < 4; byte++) {
    const int32_t factor = static_cast<int8_t>(x >> (8 * byte));
    TURNOUT_EACH acc.p[i] += ((w.p[i] >> (8 * byte)) & 255) * factor;
  }
#endif
  return acc;
}
#undef TURNOUT_EACH
#endif

}  // namespace TURNOUT_ISA
