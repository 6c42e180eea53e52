// Products of up to sixteen inputs with a panel of codes in tiles, while the panel comes from memory.
//
// A tile is stored a group after its product and scaled two groups later still, so nobody waits for a product. Sums of a group are
// exact and scaled in the order of groups: the bits are those of vectors (multiply.h).
#pragma once
#include "tile_ops.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_TILE_ZERO)
template <int kBits, bool kZeros>
class StreamedCodes {
 public:
  // `next` is read after the panel.
  StreamedCodes(int num, const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x, float* out)
      : num_(num), groups_(m.groups()), tiles_((m.group + 63) / 64),
        last_tiles_((m.steps() * m.cols_of_step() - (groups_ - 1) * m.group + 63) / 64), group_bytes_(m.group_bytes()), panel_(panel),
        end_(panel + m.panel_bytes()), next_(next), x_(x), out_(out) {}

  // out[n * 32 + lane] of `num` inputs; it has room for sixteen.
  template <class Meanwhile>
  void multiply(Meanwhile& meanwhile) {
    const uint8_t* inputs = x_.words;
    for (int i = 0; i < 16 * 32; i += 16) store_f(out_ + i, zero_f());
    unpack(0);
    for (int64_t g = 0; g < groups_; g++, inputs += tiles_ * num_ * 64) {
      fetch_group(g);
      if (g + 1 < groups_) unpack(g + 1);
      g % 2 ? add_codes_2(g, inputs) : add_codes_0(g, inputs);
      if (g >= kStored) scale_part(g - kStored);
      if (g) store(g - 1);
      meanwhile.step();
    }
    store(groups_ - 1);
    for (int64_t part = std::max<int64_t>(0, groups_ - kStored); part < (groups_ + 1) / 2 * 2; part++) scale_part(part);
  }

 private:
  static constexpr int64_t kStored = 3, kSlots = 4;

  int64_t tiles_of(int64_t g) const { return g + 1 < groups_ ? tiles_ : last_tiles_; }
  const uint8_t* group(int64_t g) const { return panel_ + g * group_bytes_; }
  static constexpr int64_t kHead = kZeros ? 128 : 64;

  // Inlined, or gcc 12 sees a function without effects and calls it not.
  TURNOUT_INLINE void fetch_group(int64_t g) const {
    const uint8_t *at = group(g), *ahead = ahead_of(at, end_, next_, kFarBytes);
    for (int64_t i = 0; i < group_bytes_; i += 64) fetch_line<true>(ahead + i, at + i);
  }

  // Eight bits are read where they lie, but for the last ones of a panel: a tile is read whole.
  bool lies_as_tile(int64_t g) const { return kBits == 8 && group(g) + kHead + tiles_of(g) * 2048 <= end_; }

  uint8_t* unpacked(int64_t g) { return wide_ + g % 2 * tiles_ * 2048; }

  void unpack(int64_t g) {
    if (lies_as_tile(g)) return;
    const uint8_t *from = group(g) + kHead, *stop = std::min(group(g) + group_bytes_, end_);
    uint8_t* to = unpacked(g);
    if constexpr (kBits == 8) {
      std::memcpy(to, from, stop - from);
      return;
    }
    I16 zero[2];
    for (int half = 0; half < 2; half++)
      zero[half] = kZeros ? mul(load_bytes(group(g) + 64 + half * 16), splat_i(0x01010101)) : splat_i(0x08080808);
    for (; from < stop; from += 128, to += 256)
      for (int half = 0; half < 2; half++) {
        const I16 all = load_words(from + half * 64), low = subtract_bytes(low_nibbles(all), zero[half]),
                  high = subtract_bytes(high_nibbles(all), zero[half]);
        std::memcpy(to + half * 64, &low, 64);
        std::memcpy(to + 128 + half * 64, &high, 64);
      }
  }

  // Sums of one group in two tiles; written out, for gcc 12 wants their numbers as text.
#define TURNOUT_PAIR(kLeft, kRight)                                                  \
  void add_codes_##kLeft(int64_t g, const uint8_t* inputs) {                          \
    const uint8_t* codes = lies_as_tile(g) ? group(g) + kHead : unpacked(g);         \
    asm volatile("" ::: "memory");                                                   \
    TURNOUT_TILE_ZERO(kLeft);                                                        \
    TURNOUT_TILE_ZERO(kRight);                                                       \
    for (int64_t i = tiles_of(g); i > 0; i--, inputs += num_ * 64, codes += 2048) {  \
      TURNOUT_TILE_LOAD(4, inputs, 64);                                              \
      TURNOUT_TILE_LOAD(6, codes, 128);                                              \
      TURNOUT_TILE_LOAD(7, codes + 64, 128);                                         \
      if constexpr (kBits == 8) {                                                    \
        TURNOUT_TILE_UNSIGNED(kLeft, 4, 6);                                          \
        TURNOUT_TILE_UNSIGNED(kRight, 4, 7);                                         \
      } else {                                                                       \
        TURNOUT_TILE_CODES(kLeft, 4, 6);                                             \
        TURNOUT_TILE_CODES(kRight, 4, 7);                                            \
      }                                                                              \
    }                                                                                \
  }                                                                                  \
  void store_##kLeft(int64_t g) {                                                     \
    asm volatile("" ::: "memory");                                                   \
    TURNOUT_TILE_STORE(kLeft, sums_[g % kSlots], 128);                               \
    TURNOUT_TILE_STORE(kRight, sums_[g % kSlots] + 16, 128);                         \
  }
  TURNOUT_PAIR(0, 1)
  TURNOUT_PAIR(2, 3)
#undef TURNOUT_PAIR

  void store(int64_t g) { g % 2 ? store_2(g) : store_0(g); }

  // Of each two groups a half of the inputs.
  void scale_part(int64_t part) {
    const int64_t g = part / 2 * 2;
    const int first = part % 2 * 8;
    if (first >= num_) return;
    g + 1 < groups_ ? scale_rows<2>(g, first) : scale_rows<1>(g, first);
  }
  template <int kGroups>
  void scale_rows(int64_t g, int first) {
    for (int half = 0; half < 2; half++) {
      F16 total[8];
      float* out = out_ + first * 32 + half * 16;
      each<8>([&](auto n) TURNOUT_INLINE { total[n] = load_f(out + n * 32); });
      each<kGroups>([&](auto i) TURNOUT_INLINE {
        const uint8_t* head = group(g + i);
        const F16 scale = load_half(reinterpret_cast<const uint16_t*>(head) + half * 16);
        const int32_t* sums = sums_[(g + i) % kSlots] + first * 32 + half * 16;
        const int64_t meta = (g + i) * num_ + first;
        each<8>([&](auto n) TURNOUT_INLINE {
          I16 sum = load_words(reinterpret_cast<const uint8_t*>(sums + n * 32));
          if constexpr (kBits == 8 && kZeros)
            sum = add(sum, mul(load_bytes(head + 64 + half * 16), splat_i(x_.offsets[meta + n])));
          else if constexpr (kBits == 8)
            sum = add(sum, splat_i(x_.offsets[meta + n]));
          total[n] = fma(total[n], mul(to_float(sum), splat_f(x_.scales[meta + n])), scale);
        });
      });
      each<8>([&](auto n) TURNOUT_INLINE { store_f(out + n * 32, total[n]); });
    }
  }

  const int num_;
  const int64_t groups_, tiles_, last_tiles_, group_bytes_;
  const uint8_t *const panel_, *const end_, *const next_;
  const Operand x_;
  float* const out_;
  alignas(64) int32_t sums_[kSlots][16 * 32];
  alignas(64) uint8_t wide_[2 * kMostGroup / 64 * 2048];
};

// out[n * 32 + lane] of `num` inputs, at most sixteen, in chunks.
template <class Meanwhile>
static void stream_codes(int num, const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x, float* out,
                         Meanwhile& meanwhile) {
  take_tiles();
  if (m.bits == 8 && m.has_zeros) return StreamedCodes<8, true>(num, m, panel, next, x, out).multiply(meanwhile);
  if (m.bits == 8) return StreamedCodes<8, false>(num, m, panel, next, x, out).multiply(meanwhile);
  if (m.has_zeros) return StreamedCodes<4, true>(num, m, panel, next, x, out).multiply(meanwhile);
  StreamedCodes<4, false>(num, m, panel, next, x, out).multiply(meanwhile);
}
#endif

}  // namespace TURNOUT_ISA
