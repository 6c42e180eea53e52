// Products of inputs with a panel in tiles (Intel AMX): 32 inputs and 32 rows of weights at a time.
//
// A step of a panel is a row of a tile as it lies: four bytes of K for each of sixteen weights. So weights are the second
// operand without being moved, and inputs the first, in chunks of 64 bytes: a tile is 1 KB on end. Codes give the bits that
// VNNI gives, for a group's sum is exact; bfloat16 adds up in another order.
// Source: Intel, "Intel Architecture Instruction Set Extensions Programming Reference", chapter 3 (operations of TDPBF16PS).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "codes_in_tiles.h"
#include "few_rows.h"
#include "inputs.h"
#include "tile_ops.h"
#include "twelve_bits.h"
#include "vec16.h"
#include "wide_groups.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_TILE_ZERO)
// Tiles of K [first, end) of a plain panel and of inputs in chunks, on top of what there is in `out` unless they are the first.
template <bool kBoth, class Meanwhile>
static void multiply_bf16_in_tiles(int num, const Panels& m, const uint8_t* panel, const uint8_t* inputs, int64_t first, int64_t end,
                                   const uint8_t* ahead, int64_t pace, const uint8_t* ahead_end, float* out, Meanwhile& meanwhile) {
  const int64_t size = num * 64, whole = std::min(end, m.steps() / 16);
  if (first)
    load_sums(out, kBoth);
  else
    zero_sums();
  inputs += first * size;
  const uint8_t* due = ahead;
  for (int64_t k = first; k < whole; k++, inputs += size) {
    ahead = fetch(ahead, due += pace, ahead_end);
    add_bf16(inputs, 64, panel + k * 2048, kBoth);
    meanwhile.step();
  }
  if (whole < end) {
    const LastSteps last(panel + whole * 2048, m.steps() - whole * 16);
    add_bf16(inputs, 64, last.weights, kBoth);
  }
  store_sums(out, kBoth);
}

// The same of inputs that are all there are: the panel comes from memory while it is multiplied. A tile waits for each of its rows
// that is not in the first cache, so lines are fetched there too, nearer to their use.
template <bool kBoth, bool kTwelve, class Meanwhile>
static void stream_bf16_in_tiles(int num, const Panels& m, const uint8_t* panel, const uint8_t* next, const uint8_t* inputs, float* out,
                                 Meanwhile& meanwhile) {
  const int64_t steps = m.steps(), size = num * 64;
  Steps<kTwelve> from(m, panel, next);
  zero_sums();
  int64_t step = 0;
  // One in twelve bits has zeros behind its last step.
  for (; step + (kTwelve ? 1 : kChunkSteps) <= steps; step += kChunkSteps, inputs += size) {
    const uint8_t *weights = from.take(), *ahead = from.ahead();
    if constexpr (!kTwelve)
      for (int64_t at = 0; at < kChunkBytes; at += 64) fetch_line<true>(ahead + at, weights + at);
    add_bf16(inputs, 64, weights, kBoth);
    meanwhile.step();
  }
  if (step < steps) {
    const LastSteps last(from.take(), steps - step);
    add_bf16(inputs, 64, last.weights, kBoth);
  }
  store_sums(out, kBoth);
}

// Tiles of K that all inputs are multiplied by before the next are: weights of 18 KB stay in the first cache, and inputs come from
// the second. Sums wait in memory meanwhile.
constexpr int64_t kMostOfPiece = 9;

// A panel that is multiplied in tiles by `count` lots of inputs, one after the other; `next` is wanted after it.
class PanelInTiles {
 public:
  // Behind the last panel of all there is nothing, and what is fetched is read from (tile_ops.h).
  PanelInTiles(const Panels& m, const uint8_t* panel, const uint8_t* next, int64_t count)
      : m_(m), panel_(panel), next_(next < m.panel(m.stack, 0) ? next : panel), bytes_(m.panel_bytes()), count_(count) {}

  int64_t tiles_of_k() const { return (m_.steps() * m_.cols_of_step() + cols_of_tile() - 1) / cols_of_tile(); }

  // out[n * 32 + lane] for `num` inputs in chunks. `out` has room for all kTileInputs.
  template <class Meanwhile>
  void multiply(int num, const Operand& x, float* out, Meanwhile& meanwhile) {
    if (is_wide(m_)) return with_kind([&](auto kind) TURNOUT_INLINE { stream_wide<kind.value>(num, x, out, meanwhile); });
    if (m_.bits != 16) return multiply_codes(num, x, out);
    if (num <= kFewRows) {
      const uint8_t* after = ++turn_ < count_ ? panel_ : next_;
      return m_.strays ? multiply_few<true>(num, x, after, out) : multiply_few<false>(num, x, after, out);
    }
    if (count_ == 1) return m_.strays ? stream<true>(num, x, out, meanwhile) : stream<false>(num, x, out, meanwhile);
    // The panel itself is on its way yet.
    constexpr int64_t kFar = 8192;
    if (turn_++ == 0) unpack(0, tiles_of_k());
    multiply_piece(num, x, 0, tiles_of_k(), panel_ + std::min(kFar, bytes_), kChunkBytes, panel_ + bytes_, out, meanwhile);
  }

  // out[(row - first row) * 32 + lane] for the rows of all lots, `tiles`, of bfloat16 or of wide groups, but for lots of codes that
  // are for vectors; `out` has room for kTileInputs more.
  template <class OperandOf, class Meanwhile>
  void multiply_all(const Tile* tiles, const OperandOf& operand_of, float* out, Meanwhile& meanwhile) {
    if (m_.bits != 16)
      return with_kind([&](auto kind) TURNOUT_INLINE { multiply_wide<kind.value>(tiles, operand_of, out, meanwhile); });
    const int64_t all = tiles_of_k(), pieces = (all + kMostOfPiece - 1) / kMostOfPiece, lot = bytes_ / (count_ * pieces);
    const uint8_t* ahead = next_;
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t first = all * piece / pieces, end = all * (piece + 1) / pieces, pace = lot / (end - first) + 1;
      unpack(first, end);
      for (int64_t i = 0; i < count_; i++, ahead += lot) {
        float* sums = out + (tiles[i].first - tiles[0].first) * 32;
        if (tiles[i].num > kFewRows)
          multiply_piece(tiles[i].num, operand_of(tiles[i]), first, end, ahead, pace, next_ + bytes_, sums, meanwhile);
        else if (end == all)
          multiply(tiles[i].num, operand_of(tiles[i]), sums, meanwhile);
      }
    }
  }

 private:
  const Panels& m_;
  const uint8_t *panel_, *next_;
  const int64_t bytes_, count_;
  int64_t turn_ = 0;
  bool took_ = false;
  SignedPanel* codes_ = nullptr;
  // Where tile k of bfloat16 is read, 2 KB each, of those that have been unpacked.
  const uint8_t* plain_ = panel_;

  int64_t cols_of_tile() const { return m_.bits == 16 ? 32 : 64; }

  // Calls what is given with the kind of the codes, which has a wide group's products of its own.
  template <class Work>
  void with_kind(const Work& work) const {
    if (m_.has_factors) return work(std::integral_constant<Wide, Wide::kFactored>());
    if (m_.has_zeros) return work(std::integral_constant<Wide, Wide::kZeros>());
    work(std::integral_constant<Wide, Wide::kSymmetric>());
  }

  void take() {
    if (!took_) take_tiles();
    took_ = true;
  }

  // Tiles of K [first, end) of a panel in twelve bits, which stay in a cache while all inputs are multiplied by them.
  void unpack(int64_t first, int64_t end) {
    if (!m_.strays) return;
    static thread_local Large<uint8_t> of_thread;
    of_thread.resize((end - first) * kChunkBytes);
    Twelve from(m_, panel_);
    for (int64_t k = first; k < end; k++) from.put(k * kChunkSteps, of_thread.data() + (k - first) * kChunkBytes);
    plain_ = of_thread.data() - first * kChunkBytes;
  }

  template <bool kTwelve>
  void multiply_few(int num, const Operand& x, const uint8_t* after, float* out) const {
    if (num == 1) return multiply_few_bf16<1, kTwelve>(m_, panel_, after, x.words, out);
    multiply_few_bf16<2, kTwelve>(m_, panel_, after, x.words, out);
  }

  template <bool kTwelve, class Meanwhile>
  void stream(int num, const Operand& x, float* out, Meanwhile& meanwhile) {
    take();
    if (num > 16) return stream_bf16_in_tiles<true, kTwelve>(num, m_, panel_, next_, x.words, out, meanwhile);
    stream_bf16_in_tiles<false, kTwelve>(num, m_, panel_, next_, x.words, out, meanwhile);
  }

  template <class Meanwhile>
  void multiply_piece(int num, const Operand& x, int64_t first, int64_t end, const uint8_t* ahead, int64_t pace,
                      const uint8_t* ahead_end, float* out, Meanwhile& meanwhile) {
    take();
    if (num > 16) return multiply_bf16_in_tiles<true>(num, m_, plain_, x.words, first, end, ahead, pace, ahead_end, out, meanwhile);
    multiply_bf16_in_tiles<false>(num, m_, plain_, x.words, first, end, ahead, pace, ahead_end, out, meanwhile);
  }

  template <Wide kKind, class OperandOf, class Meanwhile>
  void multiply_wide(const Tile* tiles, const OperandOf& operand_of, float* out, Meanwhile& meanwhile) {
    take();
    WideGroups<kKind> groups(m_, panel_, next_);
    const int64_t num_groups = m_.groups(), pace = bytes_ / (count_ * tiles_of_k()) + 1;
    const uint8_t *ahead = next_, *due = next_, *end = next_ + bytes_;
    const auto fetch_next = [&](const uint8_t*) TURNOUT_INLINE { ahead = fetch(ahead, due += pace, end); };
    for (int64_t g = 0; g < num_groups; g++)
      for (int64_t i = 0; i < count_; i++)
        if (in_tiles(m_.bits, tiles[i].num))
          groups.multiply(tiles[i].num, operand_of(tiles[i]), g, out + (tiles[i].first - tiles[0].first) * 32, fetch_next, meanwhile);
    groups.rest();
  }

  // Of inputs that are all there are: the panel comes from memory meanwhile.
  template <Wide kKind, class Meanwhile>
  void stream_wide(int num, const Operand& x, float* out, Meanwhile& meanwhile) {
    take();
    WideGroups<kKind> groups(m_, panel_, next_);
    const auto fetch_panel = [&](const uint8_t* at) TURNOUT_INLINE {
      if constexpr (kKind == Wide::kFactored) return;  // What is multiplied has been read already.
      const uint8_t* ahead = ahead_of(at, panel_ + bytes_, next_, kFarBytes);
      for (int64_t i = 0; i < 2048; i += 64) fetch_line<true>(ahead + i, at + i);
    };
    for (int64_t g = 0; g < m_.groups(); g++) groups.multiply(num, x, g, out, fetch_panel, meanwhile);
    groups.rest();
  }

  void multiply_codes(int num, const Operand& x, float* out) {
    take();
    if (turn_ == 0) {
      static thread_local SignedPanel of_thread;
      codes_ = &of_thread;
      m_.bits == 8 ? codes_->widen<8>(m_, panel_) : codes_->widen<4>(m_, panel_);
    }
    if (codes_->is_small) {
      const int64_t lot = bytes_ / count_, groups = codes_->groups;
      const auto product = num > 16 ? multiply_small_groups<true> : multiply_small_groups<false>;
      return product(num, groups, codes_->codes, codes_->scales.data(), x.words, x.scales, next_ + turn_++ * lot, lot / groups, out);
    }
    const int64_t quarters = num > 16 ? 4 : 2, lot = bytes_ / (count_ * quarters), pace = lot / codes_->groups;
    const auto product = codes_->has_zeros ? multiply_quarter<true> : multiply_quarter<false>;
    const uint8_t* ahead = next_ + turn_++ * quarters * lot;
    for (int64_t i = 0; i < quarters; i++, ahead += lot) {
      const int64_t row = i / 2 * 16, half = i % 2;
      product(num, *codes_, half, x.words + row * 64, x.scales + row, x.offsets + row, ahead, pace, out + row * 32 + half * 16);
    }
  }
};

// Small whole numbers, so that every order of adding up gives the same.
template <int kBits>
static bool product_is_right() {
  constexpr int64_t kCols = 64, kBytes = kBits / 8;
  alignas(64) uint8_t memory[64 + 32 * 128] = {}, words[kTileInputs * kCols * kBytes];
  alignas(64) float out[kTileInputs * 32];
  float factors[kTileInputs];
  int32_t offsets[kTileInputs] = {};
  const Panels m{memory, 1, 32, kCols, kBits, kBits == 16 ? 0 : kCols, 0, 0};
  for (int lane = 0; lane < 32; lane++) {
    const uint16_t one = 0x3c00;
    if (kBits == 8) std::memcpy(memory + lane * 2, &one, 2);
    factors[lane] = 1.0f;
  }
  const auto weight = [](int lane, int64_t col) { return static_cast<int>(lane * 7 + col * 5) % 11; };
  const auto input = [](int n, int64_t col) { return static_cast<int>(n * 3 + col) % 7 - 3; };
  for (int row = 0; row < 32; row++)
    for (int64_t col = 0; col < kCols; col++) {
      uint8_t* place = memory + m.head_bytes() + col / m.cols_of_step() * 128 + row * 4 + col % m.cols_of_step() * kBytes;
      uint8_t* word = words + (col * kBytes / 64 * kTileInputs + row) * 64 + col * kBytes % 64;
      const bf16 wide[2] = {narrow(static_cast<float>(weight(row, col))), narrow(static_cast<float>(input(row, col)))};
      const uint8_t codes[2] = {static_cast<uint8_t>(weight(row, col) + 128), static_cast<uint8_t>(input(row, col))};
      std::memcpy(place, kBits == 16 ? static_cast<const void*>(wide) : codes, kBytes);
      std::memcpy(word, kBits == 16 ? static_cast<const void*>(wide + 1) : codes + 1, kBytes);
    }
  const auto nothing = [](int, int) {};
  Meanwhile<decltype(nothing)> meanwhile{nothing, 0, 0};
  PanelInTiles(m, memory, memory, 1).multiply(kTileInputs, {words, factors, offsets}, out, meanwhile);
  for (int n = 0; n < kTileInputs; n++)
    for (int lane = 0; lane < 32; lane++) {
      int sum = 0;
      for (int64_t col = 0; col < kCols; col++) sum += weight(lane, col) * input(n, col);
      if (out[n * 32 + lane] != static_cast<float>(sum)) return false;
    }
  return true;
}

// Whether products in tiles are what they should be on this machine.
static int tiles_work() {
  const TilesOfUnit of_unit;
  return product_is_right<16>() && product_is_right<8>();
}
#else
static int tiles_work() { return 0; }
#endif

}  // namespace TURNOUT_ISA
