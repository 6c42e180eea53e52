// bfloat16 in twelve bits, without loss: sign and fraction as they are, the exponent looked up among sixteen of its panel.
//
// Weights of a matrix have hardly more than sixteen exponents: of some thousand one has another, and is a stray, put in its place
// when its step has been unpacked. Memory gives a weight in twelve bits sooner than in sixteen, and unpacking costs less than that.
// Source: Zhang et al. 2025, "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length
// Float", whose codes have as many bits as exponents are rare; these all have four, so that a step is a few shuffles.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "inputs.h"

namespace TURNOUT_ISA {

using turnout::Stray;

// Bytes of a plain step, of a pair of them in twelve bits, and of what is unpacked at a time: a tile's K.
constexpr int64_t kStepBytes = 128, kPairBytes = 192, kChunkSteps = 16, kChunkBytes = kChunkSteps * kStepBytes;

// Where word w of a step, of 64, has its byte: unpacking puts low and high bytes together in quarters of a register.
constexpr int byte_of_word(int w) { return w % 32 / 8 * 16 + w / 32 * 8 + w % 8; }

// A panel in twelve bits, its steps unpacked in their order.
class Twelve {
 public:
  Twelve(const Panels& m, const uint8_t* panel)
      : pairs_(panel + m.head_bytes()), stray_(reinterpret_cast<const Stray*>(panel + 64)), num_steps_(m.steps()) {
    for (int i = 0; i < 16; i++) high_[i] = panel[i] >> 1, low_[i] = static_cast<uint8_t>(panel[i] << 7);
  }

  // Where steps [first, first + 16) lie.
  const uint8_t* at(int64_t first) const { return pairs_ + first / 2 * kPairBytes; }

  // Steps [first, first + 16) as a plain panel has them, zeros where there are none; `first` is a whole number of 16s and never
  // goes back. fetch(line) is called for each line that is read.
  template <class Fetch>
  TURNOUT_INLINE void put(int64_t first, uint8_t* out, const Fetch& fetch) {
    const int64_t steps = std::min(kChunkSteps, num_steps_ - first);
    const uint8_t* pair = at(first);
    for (int64_t step = 0; step < steps; step += 2, pair += kPairBytes) {
      for (int64_t line = 0; line < kPairBytes; line += 64) fetch(pair + line);
      put_pair(pair, out + step * kStepBytes);
    }
    if (steps < kChunkSteps) std::memset(out + steps * kStepBytes, 0, (kChunkSteps - steps) * kStepBytes);
    put_strays(first, out);
  }
  void put(int64_t first, uint8_t* out) {
    put(first, out, [](const uint8_t*) {});
  }

 private:
  const uint8_t* pairs_;
  const Stray* stray_;
  const int64_t num_steps_;
  alignas(16) uint8_t high_[16], low_[16];

  TURNOUT_INLINE void put_strays(int64_t first, uint8_t* out) {
    const uint32_t begin = static_cast<uint32_t>(first * 64), end = begin + static_cast<uint32_t>(kChunkSteps * 64);
    for (; stray_->place < end; stray_++)
      if (stray_->place >= begin) {
        const bf16 weight = static_cast<bf16>(stray_->bits);
        std::memcpy(out + (stray_->place - begin) * 2, &weight, 2);
      }
  }

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  TURNOUT_INLINE void put_pair(const uint8_t* pair, uint8_t* out) const {
    const __m512i halves = _mm512_loadu_si512(pair + 128), four = _mm512_set1_epi8(15);
    put_step(_mm512_loadu_si512(pair), _mm512_and_si512(halves, four), out);
    put_step(_mm512_loadu_si512(pair + 64), _mm512_and_si512(_mm512_srli_epi16(halves, 4), four), out + kStepBytes);
  }
  TURNOUT_INLINE void put_step(__m512i rest, __m512i codes, uint8_t* out) const {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(128));
    const __m512i highs = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(high_)));
    const __m512i lows = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(low_)));
    // Of `rest` the sign or all but it, and the exponent's part.
    const __m512i high = _mm512_ternarylogic_epi64(rest, sign, _mm512_shuffle_epi8(highs, codes), 0xea);
    const __m512i low = _mm512_ternarylogic_epi64(rest, sign, _mm512_shuffle_epi8(lows, codes), 0xba);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi8(low, high));
  }
#else
  void put_pair(const uint8_t* pair, uint8_t* out) const {
    for (int half = 0; half < 2; half++)
      for (int w = 0; w < 64; w++) {
        const uint8_t rest = pair[half * 64 + byte_of_word(w)], code = pair[128 + byte_of_word(w)] >> (4 * half) & 15;
        const uint8_t two[2] = {static_cast<uint8_t>((rest & 127) | low_[code]), static_cast<uint8_t>((rest & 128) | high_[code])};
        std::memcpy(out + half * kStepBytes + w * 2, two, 2);
      }
  }
#endif
};

// A panel's bfloat16 chunk by chunk, as it lies; who takes a chunk asks for the lines behind `ahead` while it is multiplied.
template <bool kTwelve>
class Steps {
 public:
  Steps(const Panels& m, const uint8_t* panel, const uint8_t* next) : panel_(panel), end_(panel + m.panel_bytes()), next_(next) {}

  const uint8_t* take() {
    taken_ = panel_;
    panel_ += kChunkBytes;
    return taken_;
  }
  const uint8_t* ahead() const { return ahead_of(taken_, end_, next_, kTiles ? kFarBytes : kAheadBytes); }

 private:
  const uint8_t *panel_, *end_, *next_, *taken_ = nullptr;
};

// The same of one in twelve bits, which asks for its lines itself. A chunk is unpacked before it is asked for, so that whoever loads
// tiles from it does not wait for what was just stored; behind its last step are zeros.
template <>
class Steps<true> {
 public:
  Steps(const Panels& m, const uint8_t* panel, const uint8_t* next)
      : from_(m, panel), end_(panel + m.panel_bytes()), next_(next), num_steps_(m.steps()) {
    put();
  }

  TURNOUT_INLINE const uint8_t* take() {
    const uint8_t* chunk = room_ + taken_++ % kRoom * kChunkBytes;
    if (taken_ * kChunkSteps < num_steps_) put();
    return chunk;
  }
  const uint8_t* ahead() const { return nullptr; }

 private:
  static constexpr int64_t kRoom = 4;
  Twelve from_;
  const uint8_t *end_, *next_;
  const int64_t num_steps_;
  int64_t taken_ = 0;
  alignas(64) uint8_t room_[kRoom * kChunkBytes];

  TURNOUT_INLINE void put() {
    from_.put(taken_ * kChunkSteps, room_ + taken_ % kRoom * kChunkBytes, [&](const uint8_t* line) TURNOUT_INLINE {
      fetch_line<kTiles>(ahead_of(line, end_, next_, kTiles ? kFarBytes : kAheadBytes), line);
    });
  }
};

// The sixteen exponents that most words of a plain panel have.
static inline void sixteen_exponents(const bf16* words, int64_t num, uint8_t* exponents) {
  int64_t counts[256] = {};
  for (int64_t i = 0; i < num; i++) counts[words[i] >> 7 & 255]++;
  uint8_t order[256];
  for (int i = 0; i < 256; i++) order[i] = static_cast<uint8_t>(i);
  std::partial_sort(order, order + 16, order + 256, [&](int a, int b) { return counts[a] > counts[b] || (counts[a] == counts[b] && a < b); });
  std::memcpy(exponents, order, 16);
}

// Which of the sixteen an exponent is; 16 where it is none.
struct Codes {
  uint8_t of[256];

  explicit Codes(const uint8_t* exponents) {
    std::memset(of, 16, sizeof of);
    for (uint8_t i = 0; i < 16; i++) of[exponents[i]] = i;
  }
};

// How many weights of a plain panel are strays.
static inline int64_t count_strays(const bf16* words, int64_t num) {
  uint8_t exponents[16];
  sixteen_exponents(words, num, exponents);
  const Codes codes(exponents);
  return std::count_if(words, words + num, [&](bf16 word) { return codes.of[word >> 7 & 255] == 16; });
}

// The row in a lane of a panel in twelve bits.
static inline void look_up_twelve(const Panels& m, const uint8_t* panel, int64_t lane, bf16* out) {
  const uint8_t* pairs = panel + m.head_bytes();
  for (int64_t i = 0; i < m.cols; i++) {
    const int64_t step = i / 2, byte = byte_of_word(static_cast<int>(lane * 2 + i % 2));
    const uint8_t* pair = pairs + step / 2 * kPairBytes;
    const uint8_t rest = pair[step % 2 * 64 + byte], code = pair[128 + byte] >> (4 * (step % 2)) & 15;
    out[i] = static_cast<bf16>((rest & 128) << 8 | panel[code] << 7 | (rest & 127));
  }
  for (const Stray* stray = reinterpret_cast<const Stray*>(panel + 64); stray->place != UINT32_MAX; stray++) {
    const int64_t col = stray->place / 64 * 2 + stray->place % 2;
    if (stray->place % 64 / 2 == lane && col < m.cols) out[col] = static_cast<bf16>(stray->bits);
  }
}

// A plain panel in twelve bits; strays for which there is no room are lost.
static inline void put_twelve(const Panels& to, const bf16* words, uint8_t* panel) {
  const int64_t num = to.steps() * 64, most = to.strays - 1;
  std::memset(panel, 0, to.panel_bytes());
  sixteen_exponents(words, num, panel);
  const Codes codes(panel);
  Stray* strays = reinterpret_cast<Stray*>(panel + 64);
  int64_t num_strays = 0;
  for (int64_t i = 0; i < num; i++) {
    const int half = static_cast<int>(i / 64 % 2), byte = byte_of_word(static_cast<int>(i % 64));
    uint8_t* pair = panel + to.head_bytes() + i / 128 * kPairBytes;
    const uint8_t code = codes.of[words[i] >> 7 & 255];
    pair[half * 64 + byte] = static_cast<uint8_t>((words[i] >> 8 & 128) | (words[i] & 127));
    pair[128 + byte] = static_cast<uint8_t>(pair[128 + byte] | (code & 15) << (4 * half));
    if (code == 16 && num_strays < most) strays[num_strays++] = {static_cast<uint32_t>(i), words[i]};
  }
  strays[num_strays] = {UINT32_MAX, 0};
}

}  // namespace TURNOUT_ISA
