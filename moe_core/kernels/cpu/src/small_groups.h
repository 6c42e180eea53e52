// Products in tiles of codes in groups of up to 32 columns, which fill half a tile of bytes: as bfloat16 they fill a whole one.
//
// Codes of inputs and of 4 bits are bfloat16 without loss, and so is the sum of a group in float32, whatever the order: the bits are
// those of vectors. The sum need not be converted. That matters, for while tiles are in use multiplications of vectors have one of
// their two ports.
#pragma once
#include <cstring>

#include "each.h"
#include "tile_ops.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Four codes of each of sixteen lanes, from -16 to 15, as two rows of bfloat16: codes 0 and 1 of all lanes, codes 2 and 3.
static inline void widen_four(I16 four, uint8_t* rows) {
#if defined(__AVX512BW__)
  alignas(64) static constexpr bf16 kWide[32] = {
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
      0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130, 0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
  const __m512i wide = _mm512_load_si512(kWide);
  // Of a word the look-up takes the lower five bits: what stands above the code's does not matter.
  const __m512i first = _mm512_broadcast_i32x4(_mm_set_epi8(-1, 13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0));
  const __m512i second = _mm512_broadcast_i32x4(_mm_set_epi8(-1, 15, -1, 14, -1, 11, -1, 10, -1, 7, -1, 6, -1, 3, -1, 2));
  _mm512_storeu_si512(rows, _mm512_permutexvar_epi16(_mm512_shuffle_epi8(four, first), wide));
  _mm512_storeu_si512(rows + 64, _mm512_permutexvar_epi16(_mm512_shuffle_epi8(four, second), wide));
#else
  int8_t codes[64];
  std::memcpy(codes, &four, 64);
  for (int i = 0; i < 64; i++) {
    const bf16 wide = narrow(codes[i]);
    std::memcpy(rows + i / 2 % 2 * 64 + i / 4 * 4 + i % 2 * 2, &wide, 2);
  }
#endif
}

#if defined(TURNOUT_TILE_ZERO)
// out (rows, 32) += the sums of a group times what they stand for; of the first group they are all there is.
template <bool kFirst>
static inline void add_sums(int rows, const float* sums, const float* factors, const float* scales, float* out) {
  const F16 scale0 = load_f(scales), scale1 = load_f(scales + 16);
  for (int row = 0; row < rows; row += 8, sums += 8 * 32, factors += 8, out += 8 * 32)
    each<8>([&](auto n) TURNOUT_INLINE {
      const F16 factor = splat_f(factors[n]);
      float* total = out + n * 32;
      const F16 total0 = kFirst ? zero_f() : load_f(total), total1 = kFirst ? zero_f() : load_f(total + 16);
      store_f(total, fma(total0, mul(load_f(sums + n * 32), factor), scale0));
      store_f(total + 16, fma(total1, mul(load_f(sums + n * 32 + 16), factor), scale1));
    });
}

// out[n * 32 + lane] of up to 32 inputs, or 16; weights (groups, 2, 16 rows, 16 lanes) of two bfloat16, scales (groups, 32). A tile
// is loaded for the next group as soon as the last product that wants it is on its way.
template <bool kBoth>
static void multiply_small_groups(int64_t num, int64_t groups, const uint8_t* weights, const float* scales, const uint8_t* inputs,
                                  const float* factors, const uint8_t* ahead, int64_t pace, float* out) {
  alignas(64) float sums[kTileInputs * 32];
  asm volatile("" ::: "memory");
  TURNOUT_TILE_LOAD(4, inputs, 64);
  TURNOUT_TILE_LOAD(6, weights, 64);
  TURNOUT_TILE_LOAD(7, weights + 1024, 64);
  if (kBoth) TURNOUT_TILE_LOAD(5, inputs + 1024, 64);
  const uint8_t *due = ahead, *end = ahead + pace * groups;
  for (int64_t g = 0; g < groups; g++) {
    ahead = fetch(ahead, due += pace, end);
    // Behind the last group it is loaded once more, and not used.
    if (g + 1 < groups) inputs += num * 64, weights += 2048;
    zero_sums();
    asm volatile("" ::: "memory");
    TURNOUT_TILE_BF16(0, 4, 6);
    TURNOUT_TILE_BF16(1, 4, 7);
    TURNOUT_TILE_LOAD(4, inputs, 64);
    if (kBoth) TURNOUT_TILE_BF16(3, 5, 7);
    TURNOUT_TILE_LOAD(7, weights + 1024, 64);
    if (kBoth) TURNOUT_TILE_BF16(2, 5, 6);
    TURNOUT_TILE_LOAD(6, weights, 64);
    if (kBoth) TURNOUT_TILE_LOAD(5, inputs + 1024, 64);
    store_sums(sums, kBoth);
    asm volatile("" ::: "memory");
    const auto add = g ? add_sums<false> : add_sums<true>;
    add(kBoth ? 32 : 16, sums, factors + g * num, scales + g * 32, out);
  }
}
#endif

}  // namespace TURNOUT_ISA
