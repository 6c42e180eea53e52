// The instructions on tiles (Intel AMX), or the same in plain code; whose tiles a thread has; what products in tiles share.
// Source: Intel, "Intel Architecture Instruction Set Extensions Programming Reference", chapter 3.
#pragma once
#include <cstdint>
#include <cstring>

#include "inputs.h"

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
template <class Weight>
static inline void soft_dot_codes(int c, int a, int b) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum = tile_number<int32_t>(c, m, n);
      for (int k = 0; k < 16; k++)
        for (int i = 0; i < 4; i++) sum += tile_number<int8_t>(a, m, 4 * k + i) * tile_number<Weight>(b, k, 4 * n + i);
      set_tile_number(c, m, n, sum);
    }
}
#define TURNOUT_TILE_ZERO soft_zero
#define TURNOUT_TILE_LOAD soft_load
#define TURNOUT_TILE_STORE soft_store
#define TURNOUT_TILE_BF16 soft_dot_bf16
#define TURNOUT_TILE_CODES soft_dot_codes<int8_t>
#define TURNOUT_TILE_UNSIGNED soft_dot_codes<uint8_t>
static inline void take_tiles() {}
static inline void give_tiles_back() {}

#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TURNOUT_TILE_ZERO _tile_zero
#define TURNOUT_TILE_LOAD _tile_loadd
#define TURNOUT_TILE_STORE _tile_stored
#define TURNOUT_TILE_BF16 _tile_dpbf16ps
#define TURNOUT_TILE_CODES _tile_dpbssd
#define TURNOUT_TILE_UNSIGNED _tile_dpbsud

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

// Tiles 0 to 3 hold sums: 16 inputs and 16 lanes each, the lower two of the second sixteen inputs.
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

// Sixteen steps of weights that do not fill a tile, with zeros behind them: 0 times what lies there may be NaN.
struct alignas(64) LastSteps {
  uint8_t weights[16 * 128];

  LastSteps(const uint8_t* from, int64_t steps) {
    std::memcpy(weights, from, steps * 128);
    std::memset(weights + steps * 128, 0, (16 - steps) * 128);
  }
};

// What tiles of weights hold; inputs of bytes are signed.
enum class Weights { kBfloat16, kUnsigned, kSigned };

// Written out, for gcc 12 wants the numbers of tiles as text.
#define TURNOUT_TILE_PRODUCT(to, a, b)               \
  if constexpr (kWeights == Weights::kUnsigned)      \
    TURNOUT_TILE_UNSIGNED(to, a, b);                 \
  else if constexpr (kWeights == Weights::kSigned)   \
    TURNOUT_TILE_CODES(to, a, b);                    \
  else                                               \
    TURNOUT_TILE_BF16(to, a, b)

// Adds a K of one tile to tiles 0 to 3; the lower two are left alone where sixteen inputs are all. The barrier: gcc 12 does not
// know that loads of tiles read memory.
template <Weights kWeights>
TURNOUT_INLINE static inline void add_products(const uint8_t* inputs, int64_t stride, const uint8_t* weights, bool both) {
  asm volatile("" ::: "memory");
  TURNOUT_TILE_LOAD(4, inputs, stride);
  TURNOUT_TILE_LOAD(6, weights, 128);
  TURNOUT_TILE_LOAD(7, weights + 64, 128);
  TURNOUT_TILE_PRODUCT(0, 4, 6);
  TURNOUT_TILE_PRODUCT(1, 4, 7);
  if (!both) return;
  TURNOUT_TILE_LOAD(5, inputs + 16 * stride, stride);
  TURNOUT_TILE_PRODUCT(2, 5, 6);
  TURNOUT_TILE_PRODUCT(3, 5, 7);
}
#undef TURNOUT_TILE_PRODUCT
static inline void add_bf16(const uint8_t* inputs, int64_t stride, const uint8_t* weights, bool both) {
  add_products<Weights::kBfloat16>(inputs, stride, weights, both);
}
#endif

}  // namespace TURNOUT_ISA
