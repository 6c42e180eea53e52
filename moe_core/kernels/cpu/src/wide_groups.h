// Products in tiles of bytes in groups of kWideGroup columns or more, read where they lie in their panel; 4 bits become bytes first,
// a group at a time (factored.h).
//
// A group's sums are scaled once for many products, so that nothing need be hidden behind them and no panel of bytes is made signed before.
// Sums are exact, and rounded to float32 as vectors round them: the bits are theirs (multiply.h).
#pragma once
#include "each.h"
#include "factored.h"
#include "tile_ops.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Bytes around 128, or around a zero point of their group's; 4 bits with a factor for each 32 columns.
enum class Wide { kSymmetric, kZeros, kFactored };

#if defined(TURNOUT_TILE_ZERO)
// out (rows, 32) += the sums of a group, whose head is given, times what they stand for; of the first group they are all there is.
template <Wide kKind, bool kFirst>
static void add_group_sums(int rows, const int32_t* sums, const float* factors, const int32_t* offsets, const uint8_t* head, float* out) {
  for (int half = 0; half < 2; half++, sums += 16, out += 16) {
    const F16 scale = load_half(reinterpret_cast<const uint16_t*>(head) + half * 16);
    const I16 zero = kKind == Wide::kZeros ? load_bytes(head + 64 + half * 16) : splat_i(0);
    for (int row = 0; row < rows; row += 8)
      each<8>([&](auto i) TURNOUT_INLINE {
        const int n = row + i;
        I16 sum = load_words(reinterpret_cast<const uint8_t*>(sums + n * 32));
        if constexpr (kKind != Wide::kFactored) {
          const I16 offset = splat_i(offsets[n]);
          sum = add(sum, kKind == Wide::kZeros ? mul(zero, offset) : offset);
        }
        const F16 exact = to_float(sum);
        store_f(out + n * 32, fma(kFirst ? zero_f() : load_f(out + n * 32), mul(exact, splat_f(factors[n])), scale));
      });
  }
}

// One lot of inputs times one group of a panel after the other. The sums of a lot are scaled while the next one's are made, for
// whoever reads behind the store of a tile waits for its product.
template <Wide kKind>
class WideGroups {
 public:
  // `next` is read after the panel.
  WideGroups(const Panels& m, const uint8_t* panel, const uint8_t* next)
      : m_(m), panel_(panel), next_(next), chunks_((m.group + 63) / 64), steps_(m.group / 4) {}

  // Adds group g of `num` inputs in chunks to out (num, 32), which has room for all kTileInputs.
  template <class Fetch, class Meanwhile>
  void multiply(int num, const Operand& x, int64_t g, float* out, const Fetch& fetch, Meanwhile& meanwhile) {
    // Where there are factors nobody asks for offsets.
    const Lot lot{num, g, x.scales + g * num, x.offsets + (kKind == Wide::kFactored ? 0 : g * num), out};
    if (kKind == Wide::kFactored && g != widened_) widen(g);
    const uint8_t* inputs = x.words + g * chunks_ * num * 64;
    num > 16 ? products<true>(lot, inputs, fetch, meanwhile) : products<false>(lot, inputs, fetch, meanwhile);
    rest();
    due_ = lot;
    turn_ = 1 - turn_;
  }
  // Scales what is left.
  void rest() {
    if (due_.num) due_.group ? scale<false>(due_) : scale<true>(due_);
    due_.num = 0;
  }

 private:
  struct Lot {
    int num = 0;
    int64_t group = 0;
    const float* factors = nullptr;
    const int32_t* offsets = nullptr;
    float* out = nullptr;
  };
  const Panels& m_;
  const uint8_t *const panel_, *const next_;
  const int64_t chunks_, steps_;
  int64_t widened_ = -1;
  int turn_ = 0;
  Lot due_;
  alignas(64) int32_t sums_[2][kTileInputs * 32];
  alignas(64) uint8_t bytes_[kKind == Wide::kFactored ? kMostGroup * 32 : 1];

  const uint8_t* head(int64_t g) const { return panel_ + g * m_.group_bytes(); }

  void widen(int64_t g) {
    const uint8_t *group = head(g), *end = panel_ + m_.panel_bytes();
    widen_factored(m_, group, std::min(m_.group_bytes(), end - group), bytes_, [&](const uint8_t* at) TURNOUT_INLINE {
      const uint8_t* ahead = ahead_of(at, end, next_, kFarBytes);
      fetch_line<true>(ahead, at);
      fetch_line<true>(ahead + 64, at + 64);
    });
    widened_ = g;
  }

  template <bool kBoth, class Fetch, class Meanwhile>
  void products(const Lot& lot, const uint8_t* inputs, const Fetch& fetch, Meanwhile& meanwhile) {
    constexpr Weights kWeights = kKind == Wide::kFactored ? Weights::kSigned : Weights::kUnsigned;
    int64_t steps = std::min(steps_, (m_.cols + 3) / 4 - lot.group * steps_);
    const uint8_t* codes = kKind == Wide::kFactored ? bytes_ : head(lot.group) + m_.head_bytes();
    zero_sums();
    // Bytes that were made are whole tiles.
    for (; steps >= (kKind == Wide::kFactored ? 1 : 16); steps -= 16, codes += 2048, inputs += lot.num * 64) {
      fetch(codes);
      add_products<kWeights>(inputs, 64, codes, kBoth);
      meanwhile.step();
    }
    if (steps > 0) {
      const LastSteps last(codes, steps);
      add_products<kWeights>(inputs, 64, last.weights, kBoth);
    }
    store_sums(reinterpret_cast<float*>(sums_[turn_]), kBoth);
  }

  // Those of the lot before: `turn_` is the one that was stored last.
  template <bool kFirst>
  void scale(const Lot& lot) {
    add_group_sums<kKind, kFirst>(lot.num > 16 ? 32 : 16, sums_[1 - turn_], lot.factors, lot.offsets, head(lot.group), lot.out);
  }
};
#endif

}  // namespace TURNOUT_ISA
