// Inputs of products with panels: bfloat16 as it is, or eight bits with a scale for each group.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"
#include "panels.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Panels;

#if defined(TURNOUT_SOFT_TILES) || (defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__))
constexpr bool kTiles = true;
#else
constexpr bool kTiles = false;
#endif
constexpr int kTileInputs = 32;
// The most inputs of one pass, and whether so many are multiplied in tiles. Of bfloat16 any number is: tiles add up in an order
// of their own, and no bit of a row may hang on how many stand beside it. Sums of codes are exact, so theirs come as is quicker.
constexpr int kMost = kTiles ? kTileInputs : kInputs;
constexpr bool in_tiles(int num, int bits) { return kTiles && (bits == 16 || num > kInputs); }

constexpr int64_t kAheadBytes = 2048;

// What to fetch while `at` is read: further on in the same panel, or past its end in the one that is read next.
static inline const uint8_t* ahead_of(const uint8_t* at, const uint8_t* end, const uint8_t* next) {
  return end - at > kAheadBytes ? at + kAheadBytes : next + (kAheadBytes - (end - at));
}

// Rows that share one pass over panels: rows [first, first + num) of some inputs.
struct Tile {
  int64_t first;
  int num;
};

// What a product reads of a tile: where few inputs share a pass, step s of row n is word s * num + n, group g of row n has number g * num + n.
// Where they are multiplied in tiles (tiles.h), words lie row by row.
struct Operand {
  const uint8_t* words;
  const float* scales;
  const int32_t* offsets;
};

// Rows in the form that panels of one shape multiply, tile by tile; kept between calls, so that memory is asked for once.
struct Inputs {
  int64_t stride = 0;  // bytes of a row
  int64_t groups = 0;
  int bits = 16;  // of the weights
  // What a code of zero stands for in symmetric weights; 1 where the weights have zero points.
  int32_t zero = 1;
  std::vector<uint8_t> words;
  std::vector<float> scales;
  std::vector<int32_t> offsets;  // minus the sum of a group's codes, times `zero`

  void resize(int64_t num_rows, const Panels& panels) {
    // Codes are read in whole steps; what lies past the last column is zero.
    stride = panels.steps() * panels.cols_of_step() * (panels.bits == 16 ? 2 : 1);
    groups = panels.groups();
    bits = panels.bits;
    zero = panels.bits == 16 || panels.has_zeros ? 1 : 1 << (panels.bits - 1);
    words.resize(num_rows * stride);
    scales.resize(num_rows * groups);
    offsets.resize(num_rows * groups);
  }
  Operand operand(int64_t first) const {
    return {words.data() + first * stride, scales.data() + first * groups, offsets.data() + first * groups};
  }
  // Word `step` of a row.
  uint8_t* word(const Tile& tile, int64_t row, int64_t step) {
    if (in_tiles(tile.num, bits)) return words.data() + row * stride + step * 4;
    return words.data() + tile.first * stride + (step * tile.num + row - tile.first) * 4;
  }
  // From a word of a row to the next.
  int64_t pace(const Tile& tile) const { return in_tiles(tile.num, bits) ? 4 : tile.num * 4; }
};

// As few passes as there can be: as even as can be, or whole tiles and the rest.
static inline void tiles_of(int64_t first, int64_t end, std::vector<Tile>& tiles) {
  const int64_t most = kMost;
  if (kTiles && end - first > kInputs) {
    for (; first < end; first += most) tiles.push_back({first, static_cast<int>(std::min(most, end - first))});
    return;
  }
  const int64_t rows = end - first, count = (rows + most - 1) / most;
  for (int64_t i = 0; i < count; i++)
    tiles.push_back({first + rows * i / count, static_cast<int>(rows * (i + 1) / count - rows * i / count)});
}

// Takes a row that lies by itself into its place in a tile.
static inline void put_words(Inputs& inputs, const Tile& tile, int64_t row, const Operand& from) {
  uint8_t* target = inputs.word(tile, row, 0);
  const int64_t steps = inputs.stride / 4, num = tile.num, pace = inputs.pace(tile);
  for (int64_t s = 0; s < steps; s++) std::memcpy(target + s * pace, from.words + s * 4, 4);
  const int64_t meta = tile.first * inputs.groups + row - tile.first;
  for (int64_t g = 0; g < inputs.groups; g++) {
    inputs.scales[meta + g * num] = from.scales[g];
    inputs.offsets[meta + g * num] = from.offsets[g];
  }
}

// One row by itself.
struct SingleRow {
  std::vector<uint8_t> words;
  std::vector<float> scales;
  std::vector<int32_t> offsets;

  void resize(const Inputs& inputs) {
    words.resize(inputs.stride);
    scales.resize(inputs.groups);
    offsets.resize(inputs.groups);
  }
  Operand operand() const { return {words.data(), scales.data(), offsets.data()}; }
};

// Rounds halves away from zero; the sum of the codes. Vectorised: the two must not overlap.
static inline int32_t round_to_codes(const float* __restrict x, int8_t* __restrict codes, int64_t size, float factor) {
  int32_t sum = 0;
  for (int64_t i = 0; i < size; i++) {
    const float value = x[i] * factor;
    const int32_t code = static_cast<int32_t>(value + (value < 0.0f ? -0.5f : 0.5f));
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

// Codes from -127 to 127. A group with NaN or infinity gets NaN as its scale, and so makes its whole row NaN.
static inline void to_codes(const Inputs& inputs, const float* x, int64_t cols, int64_t group, uint8_t* words,
                            float* scales, int32_t* offsets) {
  int8_t* target = reinterpret_cast<int8_t*>(words);
  for (int64_t g = 0; g < inputs.groups; g++) {
    const int64_t first = g * group, size = std::max<int64_t>(0, std::min(cols - first, group));
    int32_t top = 0;
    for (int64_t i = 0; i < size; i++) {
      int32_t bits;
      std::memcpy(&bits, x + first + i, 4);
      bits &= 0x7fffffff;
      // As integers NaN and infinity are above every number.
      top = top > bits ? top : bits;
    }
    float largest;
    std::memcpy(&largest, &top, 4);
    const bool finite = top < 0x7f800000;
    // Below the smallest normal number the factor would overflow.
    const float factor = finite && largest > 1e-35f ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    if (factor == 0.0f)
      std::memset(target + first, 0, static_cast<size_t>(size));
    else
      sum = round_to_codes(x + first, target + first, size, factor);
    scales[g] = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    offsets[g] = -sum * inputs.zero;
  }
  std::memset(target + cols, 0, static_cast<size_t>(inputs.stride - cols));
}

static inline void put_codes(Inputs& inputs, const Tile& tile, int64_t row, const float* x, int64_t cols, int64_t group) {
  if (tile.num == 1)
    return to_codes(inputs, x, cols, group, inputs.word(tile, row, 0), inputs.scales.data() + row * inputs.groups,
                    inputs.offsets.data() + row * inputs.groups);
  static thread_local SingleRow single;
  single.resize(inputs);
  to_codes(inputs, x, cols, group, single.words.data(), single.scales.data(), single.offsets.data());
  put_words(inputs, tile, row, single.operand());
}

static inline void put_bf16(Inputs& inputs, const Tile& tile, int64_t row, const bf16* x, int64_t cols) {
  uint8_t* target = inputs.word(tile, row, 0);
  const int64_t steps = inputs.stride / 4, pace = inputs.pace(tile);
  const int64_t whole = cols / 2;
  for (int64_t s = 0; s < whole; s++) std::memcpy(target + s * pace, x + s * 2, 4);
  if (whole == steps) return;
  const bf16 last[2] = {x[cols - 1], 0};
  std::memcpy(target + whole * pace, last, 4);
}

}  // namespace TURNOUT_ISA
