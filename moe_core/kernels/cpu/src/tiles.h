// Products of many inputs with a panel in tiles (Intel AMX): 32 inputs and 32 rows of weights at a time.
//
// A step of a panel is a row of a tile as it lies: four bytes of K for each of sixteen weights. So weights are the second
// operand without being moved, and inputs the first, row by row. Codes give the bits that VNNI gives, for a group's sum is
// exact; bfloat16 adds up in another order.
// Source: Intel, "Intel Architecture Instruction Set Extensions Programming Reference", chapter 3 (operations of TDPBF16PS).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "inputs.h"
#include "vec16.h"

namespace TURNOUT_ISA {

// Rows of a tile in products of `num` inputs. The first sixteen lie in tile 4 and have their sums in 0 and 1, the others in 5, 2
// and 3; weights lie in 6 and 7. One row, where none is wanted: none at all would forbid the tile.
constexpr int rows_of_tile(int tile, int num) {
  if (tile >= 6) return 16;
  const bool first = tile < 2 || tile == 4;
  return first ? std::min(num, 16) : std::max(num - 16, 1);
}

#if defined(TURNOUT_SOFT_TILES)
// The same in plain code, to be checked where there is no AMX: what is counted is what the instructions are defined to do.
struct SoftTile {
  uint8_t row[16][64];
};
static thread_local SoftTile soft_tiles[8];
static thread_local int soft_rows[8];

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
  for (int row = 0; row < soft_rows[tile]; row++)
    std::memcpy(soft_tiles[tile].row[row], static_cast<const uint8_t*>(from) + row * stride, 64);
}
static inline void soft_store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < soft_rows[tile]; row++) std::memcpy(static_cast<uint8_t*>(to) + row * stride, soft_tiles[tile].row[row], 64);
}
// Even and odd columns are added up apart within a tile.
static inline void soft_dot_bf16(int c, int a, int b) {
  for (int m = 0; m < soft_rows[c]; m++)
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
  for (int m = 0; m < soft_rows[c]; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum = tile_number<int32_t>(c, m, n);
      for (int k = 0; k < 16; k++)
        for (int i = 0; i < 4; i++) sum += tile_number<int8_t>(a, m, 4 * k + i) * tile_number<uint8_t>(b, k, 4 * n + i);
      set_tile_number(c, m, n, sum);
    }
}
#define TURNOUT_TILE_ZERO soft_zero
#define TURNOUT_TILE_LOAD soft_load
#define TURNOUT_TILE_STORE soft_store
#define TURNOUT_TILE_BF16 soft_dot_bf16
#define TURNOUT_TILE_CODES soft_dot_codes
static inline void take_tiles(int num) {
  for (int tile = 0; tile < 8; tile++) soft_rows[tile] = rows_of_tile(tile, num);
}
static inline void give_tiles_back() {}

#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TURNOUT_TILE_ZERO _tile_zero
#define TURNOUT_TILE_LOAD _tile_loadd
#define TURNOUT_TILE_STORE _tile_stored
#define TURNOUT_TILE_BF16 _tile_dpbf16ps
#define TURNOUT_TILE_CODES _tile_dpbsud

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
  int ours = 0;  // for so many inputs
};
static thread_local TileState tile_state;

static inline void load_config(const TileConfig& config) {
  // gcc 12 does not know that the instruction reads memory, and drops the stores before it.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}
static inline void take_tiles(int num) {
  if (tile_state.ours == num) return;
  if (!tile_state.ours) _tile_storeconfig(&tile_state.before);
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; tile++)
    config.bytes_of_row[tile] = 64, config.rows[tile] = static_cast<uint8_t>(rows_of_tile(tile, num));
  load_config(config);
  tile_state.ours = num;
}
static inline void give_tiles_back() {
  if (!tile_state.ours) return;
  asm volatile("" : : "r"(&tile_state.before) : "memory");
  if (tile_state.before.palette)
    load_config(tile_state.before);
  else
    _tile_release();
  tile_state.ours = 0;
}

#else
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
// Sixteen steps of inputs and weights that do not fill a tile, with zeros behind them: 0 times what lies there may be NaN.
struct alignas(64) LastSteps {
  uint8_t weights[16 * 128], inputs[kTileInputs * 64];

  void copy(const uint8_t* from_weights, const uint8_t* from_inputs, int64_t stride, int num, int64_t steps) {
    std::memcpy(weights, from_weights, steps * 128);
    std::memset(weights + steps * 128, 0, (16 - steps) * 128);
    std::memset(inputs, 0, num * 64);
    for (int n = 0; n < num; n++) std::memcpy(inputs + n * 64, from_inputs + n * stride, steps * 4);
  }
};

// In two halves of a step, not at once: there are not so many buffers for lines that are on their way.
static inline void fetch_half(const uint8_t* from) {
  for (int64_t at = 0; from && at < 1024; at += 64) __builtin_prefetch(from + at);
}

// Adds a K of one tile to tiles 0 to 3, the last two where there are more than sixteen inputs, and fetches 2 KiB from `ahead`,
// or nothing. The barrier: gcc 12 does not know that loads of tiles read memory.
#define TURNOUT_TILE_STEP(PRODUCT, inputs, stride, weights, ahead) \
  do {                                                             \
    asm volatile("" ::: "memory");                                 \
    fetch_half(ahead);                                             \
    TURNOUT_TILE_LOAD(6, (weights), 128);                          \
    TURNOUT_TILE_LOAD(4, (inputs), (stride));                      \
    PRODUCT(0, 4, 6);                                              \
    fetch_half((ahead) ? (ahead) + 1024 : nullptr);                \
    TURNOUT_TILE_LOAD(7, (weights) + 64, 128);                     \
    PRODUCT(1, 4, 7);                                              \
    if (both) {                                                    \
      TURNOUT_TILE_LOAD(5, (inputs) + 16 * (stride), (stride));    \
      PRODUCT(2, 5, 6);                                            \
      PRODUCT(3, 5, 7);                                            \
    }                                                              \
  } while (0)

constexpr const uint8_t* kNoFetch = nullptr;

static inline void zero_sums(bool both) {
  TURNOUT_TILE_ZERO(0);
  TURNOUT_TILE_ZERO(1);
  if (!both) return;
  TURNOUT_TILE_ZERO(2);
  TURNOUT_TILE_ZERO(3);
}
// Rows of 32: input n, lane.
static inline void store_sums(void* to, bool both) {
  uint8_t* place = static_cast<uint8_t*>(to);
  TURNOUT_TILE_STORE(0, place, 128);
  TURNOUT_TILE_STORE(1, place + 64, 128);
  if (!both) return;
  TURNOUT_TILE_STORE(2, place + 16 * 128, 128);
  TURNOUT_TILE_STORE(3, place + 16 * 128 + 64, 128);
}

static void multiply_bf16_in_tiles(int num, const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x,
                                   float* out) {
  const bool both = num > 16;
  const int64_t steps = m.steps(), stride = steps * 4, whole = steps / 16 * 16;
  zero_sums(both);
  const uint8_t* end = panel + m.panel_bytes();
  for (int64_t s = 0; s < whole; s += 16) {
    const uint8_t *weights = panel + s * 128, *ahead = ahead_of(weights, end, next);
    TURNOUT_TILE_STEP(TURNOUT_TILE_BF16, x.words + s * 4, stride, weights, ahead);
  }
  if (whole < steps) {
    LastSteps last;
    last.copy(panel + whole * 128, x.words + whole * 4, stride, num, steps - whole);
    TURNOUT_TILE_STEP(TURNOUT_TILE_BF16, last.inputs, 64, last.weights, kNoFetch);
  }
  store_sums(out, both);
}

// Codes of 4 bits as steps of 8: a step's low halves, then its high ones.
static inline void widen_steps(const uint8_t* from, int64_t steps, uint8_t* to) {
  for (int64_t s = 0; s < steps; s++)
    for (int half = 0; half < 2; half++) {
      const I16 both = load_words(from + s * 128 + half * 64), low = low_nibbles(both), high = high_nibbles(both);
      std::memcpy(to + s * 256 + half * 64, &low, 64);
      std::memcpy(to + s * 256 + 128 + half * 64, &high, 64);
    }
}

template <int kBits, bool kZeros>
static void multiply_codes_in_tiles(int num, const Panels& m, const uint8_t* panel, const Operand& x, float* out) {
  const bool both = num > 16;
  const int64_t stride = m.steps() * m.cols_of_step(), group_bytes = m.group_bytes(), head = kZeros ? 128 : 64;
  const uint8_t *end = panel + m.panel_bytes(), *words = x.words;
  alignas(64) int32_t sums[kTileInputs * 32];
  alignas(64) uint8_t wide[16 * 128];
  std::memset(out, 0, num * 32 * sizeof(float));
  const int32_t* offsets = x.offsets;
  const float* factors = x.scales;
  for (; panel < end; panel += group_bytes, offsets += num, factors += num) {
    zero_sums(both);
    // Steps of four codes, whatever their width in memory.
    const int64_t steps = (std::min(group_bytes, end - panel) - head) / 128 * (8 / kBits);
    for (int64_t s = 0; s < steps; s += 16, words += 64) {
      const int64_t size = std::min<int64_t>(16, steps - s);
      const uint8_t* weights = panel + head + s * 128;
      if constexpr (kBits == 4) {
        widen_steps(panel + head + s / 2 * 128, size / 2, wide);
        weights = wide;
      }
      if (size == 16) {
        TURNOUT_TILE_STEP(TURNOUT_TILE_CODES, words, stride, weights, kNoFetch);
        continue;
      }
      LastSteps last;
      last.copy(weights, words, stride, num, size);
      TURNOUT_TILE_STEP(TURNOUT_TILE_CODES, last.inputs, 64, last.weights, kNoFetch);
      words -= (16 - size) * 4;
    }
    store_sums(sums, both);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
    for (int half = 0; half < 2; half++) {
      const F16 scale = load_half(scales + half * 16);
      const I16 zero = kZeros ? load_bytes(panel + 64 + half * 16) : splat_i(1);
      for (int n = 0; n < num; n++) {
        const int place = n * 32 + half * 16;
        const I16 sum = add(load_words(reinterpret_cast<const uint8_t*>(sums + place)), mul(zero, splat_i(offsets[n])));
        store_f(out + place, fma(load_f(out + place), mul(to_float(sum), splat_f(factors[n])), scale));
      }
    }
  }
}

// out[n * 32 + lane] for `num` inputs that lie row by row; `next` is read after this panel.
static inline void multiply_in_tiles(int num, const Panels& m, const uint8_t* panel, const uint8_t* next, const Operand& x,
                                     float* out) {
  take_tiles(num);
  if (m.bits == 16) return multiply_bf16_in_tiles(num, m, panel, next, x, out);
  if (m.bits == 8 && m.has_zeros) return multiply_codes_in_tiles<8, true>(num, m, panel, x, out);
  if (m.bits == 8) return multiply_codes_in_tiles<8, false>(num, m, panel, x, out);
  if (m.has_zeros) return multiply_codes_in_tiles<4, true>(num, m, panel, x, out);
  return multiply_codes_in_tiles<4, false>(num, m, panel, x, out);
}

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
      uint8_t* word = words + (row * kCols + col) * kBytes;
      const bf16 wide[2] = {narrow(static_cast<float>(weight(row, col))), narrow(static_cast<float>(input(row, col)))};
      const uint8_t codes[2] = {static_cast<uint8_t>(weight(row, col)), static_cast<uint8_t>(input(row, col))};
      std::memcpy(place, kBits == 16 ? static_cast<const void*>(wide) : codes, kBytes);
      std::memcpy(word, kBits == 16 ? static_cast<const void*>(wide + 1) : codes + 1, kBytes);
    }
  multiply_in_tiles(kTileInputs, m, memory, memory, {words, factors, offsets}, out);
  for (int n = 0; n < kTileInputs; n++)
    for (int lane = 0; lane < 32; lane++) {
      int sum = 0;
      for (int64_t col = 0; col < kCols; col++) sum += weight(lane, col) * input(n, col);
      if (out[n * 32 + lane] != static_cast<float>(sum)) return false;
    }
  return true;
}

// Whether products in tiles are what they should be on this machine; asks for no memory.
static int tiles_work() {
  const TilesOfUnit of_unit;
  return product_is_right<16>() && product_is_right<8>();
}
#else
static inline void multiply_in_tiles(int, const Panels&, const uint8_t*, const uint8_t*, const Operand&, float*) {}
static int tiles_work() { return 0; }
#endif

}  // namespace TURNOUT_ISA
