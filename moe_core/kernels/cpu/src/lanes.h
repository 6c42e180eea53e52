// Dot products of bfloat16 rows in float32, one definition for each instruction set; the flags of the compilation choose.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "each.h"

namespace TURNOUT_ISA {

using bf16 = uint16_t;

static inline float widen(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

// Round to nearest even; NaN stays NaN. Without a branch, so that loops over it vectorise.
static inline bf16 narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
  return static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// exp in float32 to about one unit in the last place times two: 0 from -88 down, infinite from 88.4 up, NaN of NaN. Branch-free, so that
// loops over it vectorise.
static inline float exp_(float x) {
  x = x < -88.0f ? -88.0f : (x > 89.0f ? 89.0f : x);
  // Beside 1.5 · 2^23 the last place is one: n lies in the last bits of the sum, and no NaN is made a whole number.
  const float shifted = x * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
static inline float sum512(__m512 x) { return _mm512_reduce_add_ps(x); }
// Of four vectors at once, lanes added in the same order: quarters first and third, then halves, then within them.
static inline void sum512x4(const __m512* x, float* out) {
  const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
  const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
  __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
  const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
}
#endif

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
struct Lanes {
  static constexpr int kWidth = 32;
  using Acc = __m512;
  using In = __m512bh;
  static Acc zero() { return _mm512_setzero_ps(); }
  static In load(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static In load_tail(const bf16* p, int n) {
    return (__m512bh)_mm512_maskz_loadu_epi16((1u << n) - 1u, p);
  }
  static Acc fma(Acc acc, In a, In b) { return _mm512_dpbf16_ps(acc, a, b); }
  static float sum(Acc acc) { return sum512(acc); }
  static void sum4(const Acc* acc, float* out) { sum512x4(acc, out); }
};
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
struct Lanes {
  static constexpr int kWidth = 16;
  using Acc = __m512;
  using In = __m512;
  static Acc zero() { return _mm512_setzero_ps(); }
  static In wide(__m256i raw) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16)); }
  static In load(const bf16* p) { return wide(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static In load_tail(const bf16* p, int n) { return wide(_mm256_maskz_loadu_epi16((1u << n) - 1u, p)); }
  static Acc fma(Acc acc, In a, In b) { return _mm512_fmadd_ps(a, b, acc); }
  static float sum(Acc acc) { return sum512(acc); }
  static void sum4(const Acc* acc, float* out) { sum512x4(acc, out); }
};
#elif defined(__AVX2__) && defined(__FMA__)
struct Lanes {
  static constexpr int kWidth = 8;
  using Acc = __m256;
  using In = __m256;
  static Acc zero() { return _mm256_setzero_ps(); }
  static In load(const bf16* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static In load_tail(const bf16* p, int n) {
    bf16 padded[8] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * 2);
    return load(padded);
  }
  static Acc fma(Acc acc, In a, In b) { return _mm256_fmadd_ps(a, b, acc); }
  static float sum(Acc acc) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  // Of four at once, lanes added in the same order.
  static void sum4(const Acc* acc, float* out) {
    __m128 half[4];
    for (int i = 0; i < 4; i++) half[i] = _mm_add_ps(_mm256_castps256_ps128(acc[i]), _mm256_extractf128_ps(acc[i], 1));
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(half[0], half[1]), _mm_movehl_ps(half[1], half[0]));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(half[2], half[3]), _mm_movehl_ps(half[3], half[2]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
  }
};
#else
struct Lanes {
  static constexpr int kWidth = 8;
  struct Acc { float v[8]; };
  struct In { float v[8]; };
  static Acc zero() { return Acc{}; }
  static In load(const bf16* p) {
    In in;
    for (int i = 0; i < 8; i++) in.v[i] = widen(p[i]);
    return in;
  }
  static In load_tail(const bf16* p, int n) {
    In in = {};
    for (int i = 0; i < n; i++) in.v[i] = widen(p[i]);
    return in;
  }
  static Acc fma(Acc acc, In a, In b) {
    for (int i = 0; i < 8; i++) acc.v[i] += a.v[i] * b.v[i];
    return acc;
  }
  static float sum(Acc acc) {
    float total = 0;
    for (int i = 0; i < 8; i++) total += acc.v[i];
    return total;
  }
  static void sum4(const Acc* acc, float* out) {
    for (int i = 0; i < 4; i++) out[i] = sum(acc[i]);
  }
};
#endif

// out[r * N + n] = dot(w[r], x[n]) over `length` elements. `ahead` elements further on lie the rows that come next, if it is not 0.
template <int R, int N>
TURNOUT_INLINE static inline void dots(const bf16* const* w, const bf16* const* x, int64_t length, float* out, int64_t ahead) {
  typename Lanes::Acc acc[R * N];
  each<R * N>([&](auto i) TURNOUT_INLINE { acc[i] = Lanes::zero(); });
  int64_t k = 0;
  for (; k + Lanes::kWidth <= length; k += Lanes::kWidth) {
    typename Lanes::In wide[R];
    each<R>([&](auto r) TURNOUT_INLINE {
      wide[r] = Lanes::load(w[r] + k);
      if (ahead) __builtin_prefetch(w[r] + k + ahead, 0, 3);
    });
    each<N>([&](auto n) TURNOUT_INLINE {
      const typename Lanes::In in = Lanes::load(x[n] + k);
      each<R>([&](auto r) TURNOUT_INLINE { acc[r * N + n] = Lanes::fma(acc[r * N + n], wide[r], in); });
    });
  }
  if (const int rest = static_cast<int>(length - k)) {
    each<N>([&](auto n) TURNOUT_INLINE {
      const typename Lanes::In in = Lanes::load_tail(x[n] + k, rest);
      each<R>([&](auto r) TURNOUT_INLINE {
        acc[r * N + n] = Lanes::fma(acc[r * N + n], Lanes::load_tail(w[r] + k, rest), in);
      });
    });
  }
  constexpr int kFours = R * N / 4;
  each<kFours>([&](auto i) TURNOUT_INLINE { Lanes::sum4(acc + 4 * i, out + 4 * i); });
  each<R * N - 4 * kFours>([&](auto i) TURNOUT_INLINE { out[4 * kFours + i] = Lanes::sum(acc[4 * kFours + i]); });
}

// The same for 1 to 4 rows and 1 to 4 inputs; out[r * num + n].
static inline void dots_upto4(int num_rows, const bf16* const* w, int num, const bf16* const* x, int64_t length,
                              float* out, int64_t ahead) {
#define TURNOUT_CASE(R, N) \
  case R * 8 + N:          \
    return dots<R, N>(w, x, length, out, ahead);
  switch (num_rows * 8 + num) {
    TURNOUT_CASE(4, 1) TURNOUT_CASE(4, 2) TURNOUT_CASE(4, 3) TURNOUT_CASE(4, 4)
    TURNOUT_CASE(3, 1) TURNOUT_CASE(3, 2) TURNOUT_CASE(3, 3) TURNOUT_CASE(3, 4)
    TURNOUT_CASE(2, 1) TURNOUT_CASE(2, 2) TURNOUT_CASE(2, 3) TURNOUT_CASE(2, 4)
    TURNOUT_CASE(1, 1) TURNOUT_CASE(1, 2) TURNOUT_CASE(1, 3) TURNOUT_CASE(1, 4)
  }
#undef TURNOUT_CASE
}

}  // namespace TURNOUT_ISA
