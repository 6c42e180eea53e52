// The sixteen lanes of vec16.h where registers are narrower: two parts with AVX2, four of the plainest set.
//
// Parts are written out, each with a number that the compiler knows when it takes structures apart: with a loop over them
// gcc 12 keeps every part in memory.
#pragma once
#include "lanes.h"

namespace TURNOUT_ISA {

#define TURNOUT_ONE(N, ...) { constexpr int i = N; __VA_ARGS__; }
#if defined(__AVX2__)
constexpr int kPart = 8;
#define TURNOUT_EACH(...) TURNOUT_ONE(0, __VA_ARGS__) TURNOUT_ONE(1, __VA_ARGS__)
#else
constexpr int kPart = 4;
#define TURNOUT_EACH(...) \
  TURNOUT_ONE(0, __VA_ARGS__) TURNOUT_ONE(1, __VA_ARGS__) TURNOUT_ONE(2, __VA_ARGS__) TURNOUT_ONE(3, __VA_ARGS__)
#endif
typedef float Fp __attribute__((vector_size(kPart * 4)));
typedef int32_t Ip __attribute__((vector_size(kPart * 4)));
struct F16 { Fp p[16 / kPart]; };
struct I16 { Ip p[16 / kPart]; };
static inline Fp part_f(float x) { return Fp{} + x; }
static inline Ip part_i(int32_t x) { return Ip{} + x; }
template <class Part>
static inline Part load_part(const void* p, int i) {
  Part out;
  std::memcpy(&out, static_cast<const uint8_t*>(p) + i * sizeof(Part), sizeof(Part));
  return out;
}
static inline F16 splat_f(float x) { F16 out; TURNOUT_EACH(out.p[i] = part_f(x)) return out; }
static inline F16 zero_f() { return splat_f(0.0f); }
static inline I16 splat_i(int32_t x) { I16 out; TURNOUT_EACH(out.p[i] = part_i(x)) return out; }
static inline I16 load_words(const uint8_t* p) { I16 out; TURNOUT_EACH(out.p[i] = load_part<Ip>(p, i)) return out; }
static inline F16 load_f(const float* p) { F16 out; TURNOUT_EACH(out.p[i] = load_part<Fp>(p, i)) return out; }
static inline void store_f(float* p, F16 x) { TURNOUT_EACH(std::memcpy(p + i * kPart, &x.p[i], sizeof(Fp))) }
static inline F16 to_float(I16 x) { F16 out; TURNOUT_EACH(out.p[i] = __builtin_convertvector(x.p[i], Fp)) return out; }
static inline F16 mul(F16 a, F16 b) { TURNOUT_EACH(a.p[i] *= b.p[i]) return a; }
static inline F16 add(F16 a, F16 b) { TURNOUT_EACH(a.p[i] += b.p[i]) return a; }
static inline F16 subtract(F16 a, F16 b) { TURNOUT_EACH(a.p[i] -= b.p[i]) return a; }
static inline F16 lesser(F16 a, F16 b) { TURNOUT_EACH(a.p[i] = a.p[i] < b.p[i] ? a.p[i] : b.p[i]) return a; }
static inline F16 greater(F16 a, F16 b) { TURNOUT_EACH(a.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i]) return a; }
static inline float greatest_of(F16 x) {
  float all[16];
  store_f(all, x);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) all[i] = all[i] > all[i + width] ? all[i] : all[i + width];
  return all[0];
}
static inline F16 greatest_of_each(const F16* x) {
  float all[16];
  for (int i = 0; i < 16; i++) all[i] = greatest_of(x[i]);
  return load_f(all);
}
static inline float sum_of(F16 x) {
  float all[16];
  store_f(all, x);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) all[i] += all[i + width];
  return all[0];
}
static inline void sums_of_four(const F16* x, float* out) {
  for (int i = 0; i < 4; i++) out[i] = sum_of(x[i]);
}
static inline F16 if_below(F16 x, F16 bound) {
  TURNOUT_EACH(x.p[i] = x.p[i] < bound.p[i] ? x.p[i] : part_f(-INFINITY))
  return x;
}
static inline uint32_t equal_bits(F16 a, F16 b) {
  uint32_t bits = 0;
#if defined(__AVX2__)
  TURNOUT_EACH(bits |= static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a.p[i] == b.p[i]))) << (i * kPart))
#else
  TURNOUT_EACH(const Ip same = a.p[i] == b.p[i];
               for (int lane = 0; lane < kPart; lane++) bits |= (same[lane] & 1u) << (i * kPart + lane))
#endif
  return bits;
}
static inline F16 two_to_last_bits(F16 x) { TURNOUT_EACH(x.p[i] = (Fp)(((Ip)x.p[i] + 127) << 23)) return x; }
static inline F16 reciprocal(F16 x) { TURNOUT_EACH(x.p[i] = 1.0f / x.p[i]) return x; }
static inline void store_narrow(bf16* p, F16 low, F16 high) {
  float wide[32];
  store_f(wide, low);
  store_f(wide + 16, high);
  for (int i = 0; i < 32; i++) p[i] = narrow(wide[i]);
}
static inline void store_narrow16(bf16* p, F16 x) {
  float wide[16];
  store_f(wide, x);
  for (int i = 0; i < 16; i++) p[i] = narrow(wide[i]);
}
static inline I16 add(I16 a, I16 b) { TURNOUT_EACH(a.p[i] += b.p[i]) return a; }
static inline I16 mul(I16 a, I16 b) { TURNOUT_EACH(a.p[i] *= b.p[i]) return a; }
static inline Fp fma_part(Fp acc, Fp a, Fp b) {
#if defined(__FMA__)
  return (Fp)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)acc);
#else
  return acc + a * b;
#endif
}
static inline F16 fma(F16 acc, F16 a, F16 b) { TURNOUT_EACH(acc.p[i] = fma_part(acc.p[i], a.p[i], b.p[i])) return acc; }
static inline void transpose_words(const uint8_t* const* rows, uint8_t* out, int64_t pace) {
  for (int s = 0; s < 16; s++)
    for (int r = 0; r < 16; r++) std::memcpy(out + s * pace + r * 4, rows[r] + s * 4, 4);
}
static inline void load_apart(const bf16* p, F16& even, F16& odd) {
  const I16 both = load_words(reinterpret_cast<const uint8_t*>(p));
  TURNOUT_EACH(even.p[i] = (Fp)(both.p[i] << 16); odd.p[i] = (Fp)(both.p[i] & static_cast<int32_t>(0xffff0000u)))
}
static inline void load_apart(const float* p, F16& even, F16& odd) {
#if defined(__AVX2__)
  // A half of each register at a time, so the middle quarters change places.
  TURNOUT_EACH(const __m256 low = _mm256_loadu_ps(p + i * 16); const __m256 high = _mm256_loadu_ps(p + i * 16 + 8);
               even.p[i] = (Fp)_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88)), 0xd8);
               odd.p[i] = (Fp)_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd)), 0xd8))
#else
  TURNOUT_EACH(const float* q = p + i * 8; even.p[i] = (Fp{q[0], q[2], q[4], q[6]}); odd.p[i] = (Fp{q[1], q[3], q[5], q[7]}))
#endif
}
typedef uint8_t Bp __attribute__((vector_size(kPart * 4)));
typedef uint32_t Up __attribute__((vector_size(kPart * 4)));
static inline I16 subtract_bytes(I16 a, I16 b) { TURNOUT_EACH(a.p[i] = (Ip)((Bp)a.p[i] - (Bp)b.p[i])) return a; }
static inline I16 mul_words(I16 a, I16 b) {
  TURNOUT_EACH(a.p[i] = (Ip)((((Up)a.p[i] & 0xffff) * ((Up)b.p[i] & 0xffff) & 0xffff) | ((Up)a.p[i] >> 16) * ((Up)b.p[i] >> 16) << 16))
  return a;
}
static inline I16 upper_nibbles_of_words(I16 x) { TURNOUT_EACH(x.p[i] = (x.p[i] >> 4) & 0x0fff0fff) return x; }
template <int kWord>
static inline I16 word_twice(I16 x) {
  TURNOUT_EACH(const Up word = ((Up)x.p[i] >> (16 * kWord)) & 0xffff; x.p[i] = (Ip)(word | (word << 16)))
  return x;
}
template <int kWord>
static inline I16 byte_fourfold(I16 x) {
  TURNOUT_EACH(x.p[i] = (Ip)((((Up)x.p[i] >> (16 * kWord)) & 255) * 0x01010101u))
  return x;
}
static inline I16 load_byte_pairs(const uint8_t* p) {
  uint16_t wide[32];
  for (int i = 0; i < 32; i++) wide[i] = p[i];
  return load_words(reinterpret_cast<const uint8_t*>(wide));
}
static inline I16 dot_words(I16 acc, I16 w, uint32_t x) {
  const int32_t low = static_cast<int16_t>(x), high = static_cast<int32_t>(x) >> 16;
  TURNOUT_EACH(acc.p[i] += ((w.p[i] << 16) >> 16) * low + (w.p[i] >> 16) * high)
  return acc;
}
static inline I16 low_nibbles(I16 x) { TURNOUT_EACH(x.p[i] &= 0x0f0f0f0f) return x; }
static inline I16 high_nibbles(I16 x) { TURNOUT_EACH(x.p[i] = (x.p[i] >> 4) & 0x0f0f0f0f) return x; }
static inline F16 dot_bf16(F16 acc, I16 w, uint32_t x) {
  // Split in all lanes, not before: one word is read into all of them, and never lies in a register of its own.
  const Ip both = part_i(static_cast<int32_t>(x));
  const Fp low = (Fp)(both << 16), high = (Fp)(both & static_cast<int32_t>(0xffff0000u));
  TURNOUT_EACH(const Ip even = w.p[i] << 16; const Ip odd = w.p[i] & static_cast<int32_t>(0xffff0000u);
               acc.p[i] = fma_part(fma_part(acc.p[i], (Fp)even, low), (Fp)odd, high))
  return acc;
}

#if defined(__AVX2__)
static inline __m128i load_8(const void* p, int i) { return load_part<__m128i>(p, i); }
// Sixteen bfloat16, sixteen float16, sixteen bytes.
static inline F16 load_wide(const bf16* p) {
  F16 out;
  TURNOUT_EACH(out.p[i] = (Fp)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_8(p, i)), 16))
  return out;
}
static inline F16 load_half(const uint16_t* p) { F16 out; TURNOUT_EACH(out.p[i] = (Fp)_mm256_cvtph_ps(load_8(p, i))) return out; }
static inline I16 load_bytes(const uint8_t* p) {
  I16 out;
  TURNOUT_EACH(out.p[i] = (Ip)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i * kPart))))
  return out;
}
static inline I16 dot_bytes(I16 acc, I16 w, uint32_t x) {
  const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(x));
  const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), odd_x = _mm256_srai_epi16(all, 8);
  // Pairs of 16 bits: vpmaddubsw would saturate.
  TURNOUT_EACH(const __m256i codes = (__m256i)w.p[i];
               const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), even_x);
               const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd_x);
               acc.p[i] += (Ip)_mm256_add_epi32(even, odd))
  return acc;
}
// Of codes of 4 bits: two products in 16 bits are 3,840 at most.
static inline I16 dot_nibbles(I16 acc, I16 low, uint32_t first, I16 high, uint32_t second) {
  const __m256i x = _mm256_set1_epi32(static_cast<int32_t>(first)), y = _mm256_set1_epi32(static_cast<int32_t>(second));
  TURNOUT_EACH(const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)low.p[i], x),
                                                      _mm256_maddubs_epi16((__m256i)high.p[i], y));
               acc.p[i] += (Ip)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
  return acc;
}
#else
static inline F16 load_wide(const bf16* p) {
  float wide[16];
  for (int lane = 0; lane < 16; lane++) wide[lane] = widen(p[lane]);
  return load_f(wide);
}
static inline F16 load_half(const uint16_t* p) {
  float wide[16];
  for (int lane = 0; lane < 16; lane++) wide[lane] = half_to_float(p[lane]);
  return load_f(wide);
}
static inline I16 load_bytes(const uint8_t* p) {
  int32_t wide[16];
  for (int lane = 0; lane < 16; lane++) wide[lane] = p[lane];
  return load_words(reinterpret_cast<const uint8_t*>(wide));
}
static inline I16 dot_bytes(I16 acc, I16 w, uint32_t x) {
  for (int byte = 0; byte < 32; byte += 8) {
    const int32_t factor = static_cast<int8_t>(x >> byte);
    TURNOUT_EACH(acc.p[i] += ((w.p[i] >> byte) & 255) * factor)
  }
  return acc;
}
static inline I16 dot_nibbles(I16 acc, I16 low, uint32_t first, I16 high, uint32_t second) {
  return dot_bytes(dot_bytes(acc, low, first), high, second);
}
#endif
static inline F16 rounded(F16 x) {
  bf16 narrowed[16];
  store_narrow16(narrowed, x);
  return load_wide(narrowed);
}
#undef TURNOUT_EACH
#undef TURNOUT_ONE

}  // namespace TURNOUT_ISA
