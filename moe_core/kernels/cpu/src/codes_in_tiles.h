// Products of codes with a panel in tiles, whose codes are made what tiles want once for all inputs. A group's sum is exact, so the
// bits are those of vectors.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "inputs.h"
#include "small_groups.h"
#include "tile_ops.h"
#include "vec16.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_TILE_ZERO)
// A panel's codes as tiles want them, made once for all inputs: signed, the zero point taken off where eight bits hold what is
// left; for each group whole tiles, zeros behind its last column. Of small groups they are bfloat16.
struct SignedPanel {
  int64_t groups = 0, tiles_of_group = 0, tiles_of_last = 0;
  bool has_zeros = false, is_small = false;
  std::vector<uint8_t> memory;
  std::vector<float> scales;   // (groups, 32)
  std::vector<int32_t> zeros;  // (groups, 32): what is to be taken off yet
  uint8_t* codes = nullptr;    // (groups, tiles of a group, 2, 16 steps, 16 lanes) of four columns, of small groups two

  const uint8_t* tile(int64_t number, int half) const { return codes + (number * 2 + half) * 1024; }

  void resize(const Panels& m) {
    groups = m.groups();
    tiles_of_group = (m.group + 63) / 64;
    tiles_of_last = (m.steps() * m.cols_of_step() - (groups - 1) * m.group + 63) / 64;
    has_zeros = m.bits == 8 && m.has_zeros;
    is_small = is_small_group(m.bits, m.group);
    memory.resize(groups * tiles_of_group * 2048 + 64);
    codes = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    scales.resize(groups * 32);
    zeros.resize(groups * 32);
  }

  template <int kBits>
  void widen(const Panels& m, const uint8_t* panel) {
    resize(m);
    const uint8_t* end = panel + m.panel_bytes();
    const int64_t group_bytes = m.group_bytes(), head = m.head_bytes();
    for (int64_t g = 0; g < groups; g++, panel += group_bytes) {
      const int64_t size = std::min(group_bytes, end - panel);
      for (int half = 0; half < 2; half++) {
        store_f(scales.data() + g * 32 + half * 16, load_half(reinterpret_cast<const uint16_t*>(panel) + half * 16));
        const I16 stored = m.has_zeros ? load_bytes(panel + 64 + half * 16) : splat_i(8);
        const I16 zero = kBits == 8 ? splat_i(static_cast<int32_t>(0x80808080u)) : mul(stored, splat_i(0x01010101));
        const I16 left = add(stored, splat_i(-128));
        std::memcpy(zeros.data() + g * 32 + half * 16, &left, 64);
        uint8_t* to = codes + (g * tiles_of_group * 2 + half) * 1024;
        int64_t step = 0;
        const auto put = [&](I16 four) TURNOUT_INLINE {
          const I16 less = subtract_bytes(four, zero);
          if (kBits == 4 && is_small) {
            widen_four(less, to + step * 64);
            step += 2;
            return;
          }
          std::memcpy(to + step / 16 * 2048 + step % 16 * 64, &less, 64);
          step++;
        };
        for (int64_t at = head; at < size; at += 128) {
          const I16 all = load_words(panel + at + half * 64);
          __builtin_prefetch(panel + at + half * 64 + 4096);
          if constexpr (kBits == 8) {
            put(all);
          } else {
            put(low_nibbles(all));
            put(high_nibbles(all));
          }
        }
        for (; step < tiles_of_group * 16; step++) std::memset(to + step / 16 * 2048 + step % 16 * 64, 0, 64);
      }
    }
  }
};

// total (16 inputs, 16 lanes) += the sums of a group of codes times what they stand for.
template <bool kZeros>
static inline void add_group(F16 (&total)[16], const int32_t* sums, const float* factors, const int32_t* offsets, F16 scale,
                             const int32_t* zeros) {
  each<16>([&](auto n) TURNOUT_INLINE {
    I16 sum = load_words(reinterpret_cast<const uint8_t*>(sums + n * 16));
    if constexpr (kZeros) sum = add(sum, mul(load_words(reinterpret_cast<const uint8_t*>(zeros)), splat_i(offsets[n])));
    total[n] = fma(total[n], mul(to_float(sum), splat_f(factors[n])), scale);
  });
}

// Sixteen inputs, sixteen lanes, whose totals stay in registers. The sums of a group are scaled two groups later, before that one's
// are stored: what is read behind the store of a tile waits for the product that it stores.
template <bool kZeros>
static void multiply_quarter(int64_t num, const SignedPanel& w, int half, const uint8_t* inputs, const float* factors,
                             const int32_t* offsets, const uint8_t* ahead, int64_t pace, float* out) {
  alignas(64) int32_t sums[4][256];
  F16 total[16];
  each<16>([&](auto n) TURNOUT_INLINE { total[n] = zero_f(); });
  const uint8_t* weights = w.tile(0, half);
  const float* scales = w.scales.data() + half * 16;
  const int32_t* zeros = w.zeros.data() + half * 16;
  const int64_t groups = w.groups, tiles = w.tiles_of_group;
  const auto scale_sums = [&](int64_t g) TURNOUT_INLINE {
    add_group<kZeros>(total, sums[g % 4], factors + g * num, offsets + g * num, load_f(scales + g * 32), zeros + g * 32);
  };
  const uint8_t *due = ahead, *end = ahead + pace * groups;
  for (int64_t g = 0; g < groups; g++) {
    ahead = fetch(ahead, due += pace, end);
    TURNOUT_TILE_ZERO(0);
    for (int64_t i = g + 1 < groups ? tiles : w.tiles_of_last; i > 0; i--, inputs += num * 64, weights += 2048) {
      asm volatile("" ::: "memory");
      TURNOUT_TILE_LOAD(1, inputs, 64);
      TURNOUT_TILE_LOAD(2, weights, 64);
      TURNOUT_TILE_CODES(0, 1, 2);
    }
    if (g >= 2) scale_sums(g - 2);
    asm volatile("" ::: "memory");
    TURNOUT_TILE_STORE(0, sums[g % 4], 64);
  }
  for (int64_t g = std::max<int64_t>(0, groups - 2); g < groups; g++) scale_sums(g);
  each<16>([&](auto n) TURNOUT_INLINE { store_f(out + n * 32, total[n]); });
}
#endif

}  // namespace TURNOUT_ISA
