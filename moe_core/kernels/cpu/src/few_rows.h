// Products of a few inputs with a panel of bfloat16 in vectors, to the bit as tiles give them (tiles.h).
//
// One input wants its weights from memory and nothing else; they come faster when vectors ask for them than when tiles do. A tile
// adds up the even columns of 32 and the odd ones apart, then their sum to what there was, flushing subnormal numbers.
#pragma once
#include "inputs.h"
#include "twelve_bits.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_SOFT_TILES) || defined(__AMX_TILE__)
// Up to so many inputs.
constexpr int kFewRows = 2;

// Tiles flush subnormal numbers, read and written, whatever the thread wants of its own arithmetic.
class FlushesSubnormals {
 public:
#if defined(__SSE2__) && !defined(TURNOUT_SOFT_TILES)
  FlushesSubnormals() { _mm_setcsr(before_ | 0x8040u); }
  ~FlushesSubnormals() { _mm_setcsr(before_); }

 private:
  const uint32_t before_ = _mm_getcsr();
#else
  FlushesSubnormals() {}
#endif
};

// out[n * 32 + lane] of N inputs in chunks; `next` is read after this panel.
template <int N, bool kTwelve>
static void multiply_few_bf16(const Panels& m, const uint8_t* panel, const uint8_t* next, const uint8_t* chunks, float* out) {
  const FlushesSubnormals flushes;
  F16 total[N][2];
  each<N>([&](auto n) TURNOUT_INLINE { total[n][0] = total[n][1] = zero_f(); });
  Steps<kTwelve> from(m, panel, next);
  const int64_t all = m.steps() * kStepBytes;
  for (int64_t begin = 0; begin < all; begin += kChunkBytes, chunks += N * 64) {
    const uint8_t *weights = from.take(), *ahead = from.ahead();
    const int64_t size = std::min(kChunkBytes, all - begin);
    F16 even[N][2], odd[N][2];
    each<N>([&](auto n) TURNOUT_INLINE { even[n][0] = even[n][1] = odd[n][0] = odd[n][1] = zero_f(); });
    for (int64_t at = 0; at < size; at += 128) {
      F16 low[2], high[2];
      for (int half = 0; half < 2; half++) {
        const int64_t place = at + half * 64;
        if constexpr (!kTwelve) fetch_line<true>(ahead + place, weights + place);
        load_apart(reinterpret_cast<const bf16*>(weights + place), low[half], high[half]);
      }
      each<N>([&](auto n) TURNOUT_INLINE {
        const uint32_t pair = load32(chunks + n * 64 + at / 32);
        const F16 first = splat_f(widen(static_cast<bf16>(pair))), second = splat_f(widen(static_cast<bf16>(pair >> 16)));
        for (int half = 0; half < 2; half++) {
          even[n][half] = fma(even[n][half], low[half], first);
          odd[n][half] = fma(odd[n][half], high[half], second);
        }
      });
    }
    each<N>([&](auto n) TURNOUT_INLINE {
      for (int half = 0; half < 2; half++) total[n][half] = add(total[n][half], add(even[n][half], odd[n][half]));
    });
  }
  each<N>([&](auto n) TURNOUT_INLINE {
    store_f(out + n * 32, total[n][0]);
    store_f(out + n * 32 + 16, total[n][1]);
  });
}
#endif

}  // namespace TURNOUT_ISA
