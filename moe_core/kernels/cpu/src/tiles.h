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
#include <vector>

#include "few_rows.h"
#include "inputs.h"
#include "vec16.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_SOFT_TILES)
// The same in plain code, to be checked where there is no AMX: what is counted is what the instructions are defined to do.
struct SoftTile {
  uint8_t row[16][64];
};
static thread_local SoftTile soft_tiles[8];

template <class Number>
static inline Number tile_number(int tile, int row, int64_t at) {
  Number value;
  std::memcpy(&value, soft_tiles[tile].row[row] + at * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}
template <class Number>
static inline void set_tile_number(int tile, int row, int64_t at, Number value) {
  std::memcpy(soft_tiles[tile].row[row] + at * static_cast<int64_t>(sizeof value), &value, sizeof value);
}
static inline void soft_zero(int tile) { std::memset(&soft_tiles[tile], 0, sizeof(SoftTile)); }
static inline void soft_load(int tile, const void* from, int64_t stride) {
  for (int row = 0; row < 16; row++)
    std::memcpy(soft_tiles[tile].row[row], static_cast<const uint8_t*>(from) + row * stride, 64);
}
static inline void soft_store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < 16; row++) std::memcpy(static_cast<uint8_t*>(to) + row * stride, soft_tiles[tile].row[row], 64);
}
// Even and odd columns are added up apart within a tile.
static inline void soft_dot_bf16(int c, int a, int b) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      float even = 0.0f, odd = 0.0f;
      for (int k = 0; k < 16; k++) {
        even += widen(tile_number<bf16>(a, m, 2 * k)) * widen(tile_number<bf16>(b, k, 2 * n));
        odd += widen(tile_number<bf16>(a, m, 2 * k + 1)) * widen(tile_number<bf16>(b, k, 2 * n + 1));
      }
      set_tile_number(c, m, n, tile_number<float>(c, m, n) + (even + odd));
    }
}
static inline void soft_dot_codes(int c, int a, int b) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum = tile_number<int32_t>(c, m, n);
      for (int k = 0; k < 16; k++)
        for (int i = 0; i < 4; i++) sum += tile_number<int8_t>(a, m, 4 * k + i) * tile_number<int8_t>(b, k, 4 * n + i);
      set_tile_number(c, m, n, sum);
    }
}
#define TURNOUT_TILE_ZERO soft_zero
#define TURNOUT_TILE_LOAD soft_load
#define TURNOUT_TILE_STORE soft_store
#define TURNOUT_TILE_BF16 soft_dot_bf16
#define TURNOUT_TILE_CODES soft_dot_codes
static inline void take_tiles() {}
static inline void give_tiles_back() {}

#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TURNOUT_TILE_ZERO _tile_zero
#define TURNOUT_TILE_LOAD _tile_loadd
#define TURNOUT_TILE_STORE _tile_stored
#define TURNOUT_TILE_BF16 _tile_dpbf16ps
#define TURNOUT_TILE_CODES _tile_dpbssd

// Palette 1: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_of_row[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "what LDTILECFG reads");

// What the thread had before: other libraries of the process use tiles too, and remember what they configured.
struct TileState {
  TileConfig before;
  bool ours = false;
};
static thread_local TileState tile_state;

static inline void load_config(const TileConfig& config) {
  // gcc 12 does not know that the instruction reads memory, and drops the stores before it.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}
static inline void take_tiles() {
  if (tile_state.ours) return;
  _tile_storeconfig(&tile_state.before);
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; tile++) config.bytes_of_row[tile] = 64, config.rows[tile] = 16;
  load_config(config);
  tile_state.ours = true;
}
static inline void give_tiles_back() {
  if (!tile_state.ours) return;
  asm volatile("" : : "r"(&tile_state.before) : "memory");
  if (tile_state.before.palette)
    load_config(tile_state.before);
  else
    _tile_release();
  tile_state.ours = false;
}

#else
static inline void take_tiles() {}
static inline void give_tiles_back() {}
#endif

// In a unit of work: gives the thread's tiles back when it ends.
struct TilesOfUnit {
  TilesOfUnit() = default;
  TilesOfUnit(const TilesOfUnit&) = delete;
  TilesOfUnit& operator=(const TilesOfUnit&) = delete;
  ~TilesOfUnit() { give_tiles_back(); }
};

#if defined(TURNOUT_TILE_ZERO)
// Reads a byte that nobody wants.
static inline void touch(const uint8_t* byte) { asm volatile("" : : "r"(*byte)); }

// Memory to be fetched while something else is multiplied. A prefetch whose page the core has no translation of is dropped: so a byte
// of each page is read first, a page before its turn. Passed in two words: what is put together in memory and read at once waits
// for all that went before.
static inline const uint8_t* fetch(const uint8_t* ahead, const uint8_t* stop, const uint8_t* end) {
  constexpr uintptr_t kPage = 4096;
  for (stop = std::min(stop, end); ahead < stop; ahead += 64) {
    if (reinterpret_cast<uintptr_t>(ahead) % kPage < 64) touch(std::min(ahead + kPage, end - 1));
    __builtin_prefetch(ahead, 0, 2);
  }
  return ahead;
}

// Sixteen steps of weights that do not fill a tile, with zeros behind them: 0 times what lies there may be NaN.
struct alignas(64) LastSteps {
  uint8_t weights[16 * 128];

  LastSteps(const uint8_t* from, int64_t steps) {
    std::memcpy(weights, from, steps * 128);
    std::memset(weights + steps * 128, 0, (16 - steps) * 128);
  }
};

// Adds a K of one tile to tiles 0 to 3; the lower two are left alone where sixteen inputs are all. The barrier: gcc 12 does not
// know that loads of tiles read memory.
static inline void add_bf16(const uint8_t* inputs, int64_t stride, const uint8_t* weights, bool both) {
  asm volatile("" ::: "memory");
  TURNOUT_TILE_LOAD(4, inputs, stride);
  TURNOUT_TILE_LOAD(6, weights, 128);
  TURNOUT_TILE_LOAD(7, weights + 64, 128);
  TURNOUT_TILE_BF16(0, 4, 6);
  TURNOUT_TILE_BF16(1, 4, 7);
  if (!both) return;
  TURNOUT_TILE_LOAD(5, inputs + 16 * stride, stride);
  TURNOUT_TILE_BF16(2, 5, 6);
  TURNOUT_TILE_BF16(3, 5, 7);
}

static inline void zero_sums() {
  TURNOUT_TILE_ZERO(0);
  TURNOUT_TILE_ZERO(1);
  TURNOUT_TILE_ZERO(2);
  TURNOUT_TILE_ZERO(3);
}
// Rows of 32: input n, lane.
static inline void store_sums(float* out, bool both) {
  TURNOUT_TILE_STORE(0, out, 128);
  TURNOUT_TILE_STORE(1, out + 16, 128);
  if (!both) return;
  TURNOUT_TILE_STORE(2, out + 16 * 32, 128);
  TURNOUT_TILE_STORE(3, out + 16 * 32 + 16, 128);
}
static inline void load_sums(const float* out, bool both) {
  asm volatile("" ::: "memory");
  TURNOUT_TILE_LOAD(0, out, 128);
  TURNOUT_TILE_LOAD(1, out + 16, 128);
  if (!both) return;
  TURNOUT_TILE_LOAD(2, out + 16 * 32, 128);
  TURNOUT_TILE_LOAD(3, out + 16 * 32 + 16, 128);
}

// Tiles of K [first, end) of a panel and of inputs in chunks, on top of what there is in `out` unless they are the first.
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

// A panel's codes as tiles want them, made once for all inputs: signed, the zero point taken off where eight bits hold what is
// left; for each group whole tiles, zeros behind its last column.
struct SignedPanel {
  int64_t groups = 0, tiles_of_group = 0;
  bool has_zeros = false;
  std::vector<uint8_t> memory;
  std::vector<float> scales;   // (groups, 32)
  std::vector<int32_t> zeros;  // (groups, 32): what is to be taken off yet
  uint8_t* codes = nullptr;    // (groups, tiles of a group, 2, 16 steps, 16 lanes) of four columns

  const uint8_t* tile(int64_t number, int half) const { return codes + (number * 2 + half) * 1024; }

  void resize(const Panels& m) {
    groups = m.groups();
    tiles_of_group = (m.group + 63) / 64;
    has_zeros = m.bits == 8 && m.has_zeros;
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
    for (int64_t i = 0; i < tiles; i++, inputs += num * 64, weights += 2048) {
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

// Tiles of K that all inputs are multiplied by before the next are: weights of 18 KB stay in the first cache, and inputs come from
// the second. Sums wait in memory meanwhile.
constexpr int64_t kMostOfPiece = 9;

// A panel that is multiplied in tiles by `count` lots of inputs, one after the other; `next` is wanted after it.
class PanelInTiles {
 public:
  PanelInTiles(const Panels& m, const uint8_t* panel, const uint8_t* next, int64_t count)
      : m_(m), panel_(panel), next_(next), bytes_(m.panel_bytes()), count_(count) {}

  int64_t tiles_of_k() const { return (m_.steps() + 15) / 16; }

  // out[n * 32 + lane] for `num` inputs in chunks. `out` has room for all kTileInputs.
  template <class Meanwhile>
  void multiply(int num, const Operand& x, float* out, Meanwhile& meanwhile) {
    if (m_.bits != 16) return multiply_codes(num, x, out);
    if (num <= kFewRows) {
      const uint8_t* after = ++turn_ < count_ ? panel_ : next_;
      return num == 1 ? multiply_few_bf16<1>(m_, panel_, after, x.words, out) : multiply_few_bf16<2>(m_, panel_, after, x.words, out);
    }
    // The panel itself is on its way yet.
    constexpr int64_t kFar = 8192;
    turn_++;
    multiply_piece(num, x, 0, tiles_of_k(), panel_ + std::min(kFar, bytes_), 2048, panel_ + bytes_, out, meanwhile);
  }

  // out[(row - first row) * 32 + lane] for the rows of all lots, `tiles`, of bfloat16; `out` has room for kTileInputs more.
  template <class OperandOf, class Meanwhile>
  void multiply_all(const Tile* tiles, const OperandOf& operand_of, float* out, Meanwhile& meanwhile) {
    const int64_t all = tiles_of_k(), pieces = (all + kMostOfPiece - 1) / kMostOfPiece, lot = bytes_ / (count_ * pieces);
    const uint8_t* ahead = next_;
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t first = all * piece / pieces, end = all * (piece + 1) / pieces, pace = lot / (end - first) + 1;
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

  void take() {
    if (!took_) take_tiles();
    took_ = true;
  }

  template <class Meanwhile>
  void multiply_piece(int num, const Operand& x, int64_t first, int64_t end, const uint8_t* ahead, int64_t pace,
                      const uint8_t* ahead_end, float* out, Meanwhile& meanwhile) {
    take();
    if (num > 16) return multiply_bf16_in_tiles<true>(num, m_, panel_, x.words, first, end, ahead, pace, ahead_end, out, meanwhile);
    multiply_bf16_in_tiles<false>(num, m_, panel_, x.words, first, end, ahead, pace, ahead_end, out, meanwhile);
  }

  void multiply_codes(int num, const Operand& x, float* out) {
    take();
    static thread_local SignedPanel of_thread;
    if (turn_ == 0) {
      codes_ = &of_thread;
      m_.bits == 8 ? codes_->widen<8>(m_, panel_) : codes_->widen<4>(m_, panel_);
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
