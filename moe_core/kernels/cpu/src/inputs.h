// Inputs of products with panels: bfloat16 as it is, or eight bits with a scale for each group.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "each.h"
#include "huge.h"
#include "lanes.h"
#include "panels.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Large;
using turnout::Panels;

#if defined(TURNOUT_SOFT_TILES) || (defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__))
constexpr bool kTiles = true;
#else
constexpr bool kTiles = false;
#endif
constexpr int kTileInputs = 32;
// The most inputs of one pass.
constexpr int kMost = kTiles ? kTileInputs : kInputs;
// Whether inputs that share a pass, so many, are multiplied in tiles. Of bfloat16 all are: tiles add it up in another order than
// vectors do, and no row may depend on its company. Codes have the same bits either way; of them vectors take few at a time.
constexpr bool in_tiles(int bits, int64_t num) { return kTiles && (bits == 16 || num > kInputs); }

// Whether tiles multiply codes as bfloat16 (small_groups.h): where bytes of a group would fill half a tile.
constexpr int64_t kSmallGroup = 32;
constexpr bool is_small_group(int bits, int64_t group) { return bits == 4 && group <= kSmallGroup; }
// Whether tiles multiply codes where they lie (wide_groups.h).
constexpr int64_t kWideGroup = 256;
static inline bool is_wide(const Panels& m) { return m.has_factors || (m.bits == 8 && m.group >= kWideGroup); }
// Rows by the same weights from which on tiles pay: others want a panel's codes made signed, or bfloat16, before the first of them.
static inline int64_t rows_for_tiles(const Panels& m) {
  return m.bits == 16 ? 1 : is_wide(m) ? kInputs + 1 : is_small_group(m.bits, m.group) ? 48 : 28;
}

// Whether tiles multiply codes while their panel comes (streamed_codes.h): so many inputs, and none beside them.
static inline bool in_stream(const Panels& m, int64_t num) {
  return kTiles && m.bits != 16 && !is_small_group(m.bits, m.group) && !is_wide(m) && num > kInputs && num <= 16;
}

// The most columns of a group.
constexpr int64_t kMostGroup = 1024;

// How far ahead lines are fetched: of codes, of bfloat16 where there are tiles, and from the second cache into the first.
constexpr int64_t kAheadBytes = kTiles ? 3072 : 2048, kFarBytes = 4096, kNearBytes = 1024;

// What to fetch while `at` is read: further on in the same panel, or past its end in the one that is read next.
static inline const uint8_t* ahead_of(const uint8_t* at, const uint8_t* end, const uint8_t* next, int64_t bytes = kAheadBytes) {
  return end - at > bytes ? at + bytes : next + (bytes - (end - at));
}

// Fetches a line of weights that will be read. Where the cores have tiles, memory comes faster when a line is asked for into the
// second cache first, and nearer to its use into the first.
template <bool kTwice>
TURNOUT_INLINE static inline void fetch_line(const uint8_t* ahead, const uint8_t* at) {
  if constexpr (kTwice) {
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(at + kNearBytes);
  } else {
    __builtin_prefetch(ahead);
  }
}

// Rows that share one pass over panels: rows [first, first + num) of some inputs.
struct Tile {
  int64_t first;
  int num;
};

// What a product reads of a tile: step s of row n is word s * num + n, group g of row n has number g * num + n, and so have the
// offsets of all groups' pairs, where weights have factors. Where inputs are multiplied in tiles (tiles.h), chunks of 64 bytes stand
// in place of words, of codes whole ones for each group; of small groups they hold bfloat16.
struct Operand {
  const uint8_t* words;
  const float* scales;
  const int32_t* offsets;
};

// Rows in the form that panels of one shape multiply, tile by tile; kept between calls, so that memory is asked for once.
struct Inputs {
  int64_t stride = 0;  // bytes of a row, in whole chunks
  int64_t groups = 0;
  int64_t group_bytes = 0;  // of a row's group, which a row in chunks begins a new chunk with
  int64_t row_bytes = 0;    // in whole steps of a panel
  int64_t pairs = 0;        // of 32 columns with a factor each, in a group of weights that have them
  int bits = 16;            // of the weights
  // What a code of zero stands for in symmetric weights; 1 where the weights have zero points.
  int32_t zero = 1;
  Large<uint8_t> words;
  std::vector<float> scales;
  // Minus the sum of a group's codes, times `zero`; of pairs minus the sums of either 32 columns, in 16 bits.
  std::vector<int32_t> offsets;

  void resize(int64_t num_rows, const Panels& panels) {
    bits = panels.bits;
    groups = panels.groups();
    // Codes are read in whole steps; what lies past the last column is zero.
    row_bytes = panels.steps() * panels.cols_of_step() * (bits == 16 ? 2 : 1);
    group_bytes = bits == 16 ? row_bytes : panels.group;
    pairs = panels.pairs_of_group();
    const int64_t last = std::max<int64_t>(0, groups - 1);
    stride = kTiles ? (last * chunks_of(group_bytes) + chunks_of(bytes_of(last))) * 64 : row_bytes;
    zero = panels.bits == 16 || panels.has_zeros ? 1 : 1 << (panels.bits - 1);
    // Tiles are read whole, whether there are so many rows or not.
    words.resize((num_rows + (kTiles ? kTileInputs : 0)) * stride);
    scales.resize(num_rows * groups + (kTiles ? kTileInputs : 0));
    offsets.resize(num_rows * groups * offsets_of_group() + (kTiles ? kTileInputs : 0));
  }
  static int64_t chunks_of(int64_t bytes) { return (bytes + 63) / 64; }
  int64_t offsets_of_group() const { return std::max<int64_t>(1, pairs); }
  // Of group g; the last one may have fewer.
  int64_t bytes_of(int64_t g) const { return std::min(group_bytes, row_bytes - g * group_bytes); }
  Operand operand(int64_t first) const {
    return {words.data() + first * stride, scales.data() + first * groups,
            offsets.data() + first * groups * offsets_of_group()};
  }
  // Word `step` of a row that is not multiplied in tiles; from it to the next are `num` words.
  uint8_t* word(const Tile& tile, int64_t row, int64_t step) {
    return words.data() + tile.first * stride + (step * tile.num + row - tile.first) * 4;
  }
  // Chunk `number` of a row that is; from it to the next are `num` chunks.
  uint8_t* chunk(const Tile& tile, int64_t row, int64_t number) {
    return words.data() + tile.first * stride + (number * tile.num + row - tile.first) * 64;
  }
};

// Rows of an earlier product that are seen to while the next is made, a few with each of its steps.
template <class Rows>
struct Meanwhile {
  const Rows& rows;
  int num, pace, next = 0;

  void step() {
    if (next < num) advance(std::min(num, next + pace));
  }
  void rest() {
    if (next < num) advance(num);
  }

 private:
  void advance(int stop) {
    rows(next, stop);
    next = stop;
  }
};

// As few passes as there can be: as even as can be, or whole tiles and the rest.
static inline void tiles_of(const Panels& panels, int64_t first, int64_t end, std::vector<Tile>& tiles) {
  const int64_t rows = end - first;
  if (in_tiles(panels.bits, rows) && rows >= rows_for_tiles(panels)) {
    for (; first < end; first += kMost) tiles.push_back({first, static_cast<int>(std::min<int64_t>(kMost, end - first))});
    return;
  }
  if (in_stream(panels, rows)) return tiles.push_back({first, static_cast<int>(rows)});
  const int64_t count = (rows + kInputs - 1) / kInputs;
  for (int64_t i = 0; i < count; i++)
    tiles.push_back({first + rows * i / count, static_cast<int>(rows * (i + 1) / count - rows * i / count)});
}

// Bytes of a row, of one group, into its chunks from one on, with zeros behind them.
static inline void put_chunks(Inputs& inputs, const Tile& tile, int64_t row, int64_t chunk, const uint8_t* from, int64_t bytes) {
  uint8_t* target = inputs.chunk(tile, row, chunk);
  for (; bytes >= 64; bytes -= 64, from += 64, target += tile.num * 64) std::memcpy(target, from, 64);
  if (!bytes) return;
  std::memset(target, 0, 64);
  std::memcpy(target, from, bytes);
}

// The codes of a row's group into its chunks.
static inline void put_group_chunks(Inputs& inputs, const Tile& tile, int64_t row, int64_t g, const uint8_t* codes) {
  const int64_t chunk = g * Inputs::chunks_of(inputs.group_bytes), bytes = inputs.bytes_of(g);
  if (!is_small_group(inputs.bits, inputs.group_bytes)) return put_chunks(inputs, tile, row, chunk, codes, bytes);
  alignas(64) bf16 wide[kSmallGroup] = {};
  for (int64_t i = 0; i < bytes; i++) {
    const float exact = static_cast<int8_t>(codes[i]);
    uint32_t bits;
    std::memcpy(&bits, &exact, 4);
    wide[i] = static_cast<bf16>(bits >> 16);
  }
  std::memcpy(inputs.chunk(tile, row, chunk), wide, 64);
}

// Takes a row of codes that lies by itself into its place in a tile.
static inline void put_words(Inputs& inputs, const Tile& tile, int64_t row, const Operand& from) {
  const int64_t num = tile.num;
  if (in_tiles(inputs.bits, num)) {
    for (int64_t g = 0; g < inputs.groups; g++) put_group_chunks(inputs, tile, row, g, from.words + g * inputs.group_bytes);
  } else {
    uint8_t* target = inputs.word(tile, row, 0);
    for (int64_t s = 0; s < inputs.stride / 4; s++) std::memcpy(target + s * num * 4, from.words + s * 4, 4);
  }
  float* scales = inputs.scales.data() + tile.first * inputs.groups + row - tile.first;
  for (int64_t g = 0; g < inputs.groups; g++) scales[g * num] = from.scales[g];
  const int64_t num_offsets = inputs.groups * inputs.offsets_of_group();
  int32_t* offsets = inputs.offsets.data() + tile.first * num_offsets + row - tile.first;
  for (int64_t i = 0; i < num_offsets; i++) offsets[i * num] = from.offsets[i];
}

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

// Minus the sums of either half of each 64 codes of `size`, beside each other; `pace` numbers apart.
static inline void put_pair_offsets(const int8_t* codes, int64_t size, int64_t pairs, int32_t* offsets, int64_t pace) {
  for (int64_t pair = 0; pair < pairs; pair++, codes += 64, size -= 64) {
    int32_t sums[2] = {};
    for (int half = 0; half < 2; half++)
      if (size >= half * 32 + 32)
        for (int i = 0; i < 32; i++) sums[half] -= codes[half * 32 + i];
      else
        for (int64_t i = half * 32; i < size; i++) sums[half] -= codes[i];
    offsets[pair * pace] = static_cast<int32_t>((sums[0] & 0xffff) | static_cast<uint32_t>(sums[1]) << 16);
  }
}

// One group's codes, from -127 to 127, as many as it has columns; minus their sum. A group with NaN or infinity gets NaN as its scale,
// and so makes its whole row NaN.
static inline void to_codes(const float* x, int64_t size, int8_t* codes, float& scale, int32_t& less) {
  int32_t top = 0;
  for (int64_t i = 0; i < size; i++) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
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
    std::memset(codes, 0, static_cast<size_t>(std::max<int64_t>(0, size)));
  else
    sum = round_to_codes(x, codes, size, factor);
  scale = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
  less = -sum;
}

// The same with what its products are to be offset by, `pace` numbers apart.
static inline void to_codes(const Inputs& inputs, const float* x, int64_t size, int8_t* codes, float& scale, int32_t* offsets,
                            int64_t pace) {
  int32_t less;
  to_codes(x, size, codes, scale, less);
  if (inputs.pairs)
    put_pair_offsets(codes, size, inputs.pairs, offsets, pace);
  else
    *offsets = less * inputs.zero;
}

// A whole row that lies by itself, of `cols` columns.
static inline void row_to_codes(const Inputs& inputs, const float* x, int64_t cols, uint8_t* words, float* scales,
                                int32_t* offsets) {
  int8_t* target = reinterpret_cast<int8_t*>(words);
  for (int64_t g = 0; g < inputs.groups; g++) {
    const int64_t first = g * inputs.group_bytes;
    to_codes(inputs, x + first, std::min(cols - first, inputs.group_bytes), target + first, scales[g],
             offsets + g * inputs.offsets_of_group(), 1);
  }
  std::memset(target + cols, 0, static_cast<size_t>(inputs.stride - cols));
}

// Group g of a row into its place in a tile, `size` columns of it.
static inline void put_group(Inputs& inputs, const Tile& tile, int64_t row, int64_t g, const float* x, int64_t size) {
  alignas(64) uint8_t codes[kMostGroup];
  const int64_t num = tile.num, of_group = inputs.offsets_of_group(), place = row - tile.first;
  to_codes(inputs, x, size, reinterpret_cast<int8_t*>(codes), inputs.scales[tile.first * inputs.groups + g * num + place],
           inputs.offsets.data() + (tile.first * inputs.groups + g * num) * of_group + place, num);
  const int64_t bytes = inputs.bytes_of(g);
  if (size < bytes) std::memset(codes + size, 0, bytes - size);
  if (in_tiles(inputs.bits, num)) {
    put_group_chunks(inputs, tile, row, g, codes);
    return;
  }
  uint8_t* target = inputs.word(tile, row, g * inputs.group_bytes / 4);
  for (int64_t s = 0; s < bytes / 4; s++) std::memcpy(target + s * num * 4, codes + s * 4, 4);
}

static inline void put_codes(Inputs& inputs, const Tile& tile, int64_t row, const float* x, int64_t cols) {
  if (tile.num == 1)
    return row_to_codes(inputs, x, cols, inputs.word(tile, row, 0), inputs.scales.data() + row * inputs.groups,
                        inputs.offsets.data() + row * inputs.groups * inputs.offsets_of_group());
  for (int64_t g = 0, first = 0; g < inputs.groups; g++, first += inputs.group_bytes)
    put_group(inputs, tile, row, g, x + first, std::min(cols - first, inputs.group_bytes));
}

// All rows of a tile, place by place: what lies side by side is written in turn, and rows that are a power of two apart do not drive
// each other out of the cache.
static inline void put_bf16(Inputs& inputs, const Tile& tile, const bf16* const* rows, int64_t cols) {
  const int64_t size = in_tiles(16, tile.num) ? 64 : 4, whole = cols * 2 / size;
  uint8_t* target = inputs.words.data() + tile.first * inputs.stride;
  const auto put = [&](int64_t place, int64_t bytes) TURNOUT_INLINE {
    for (int n = 0; n < tile.num; n++, target += size) std::memcpy(target, reinterpret_cast<const uint8_t*>(rows[n]) + place * size, bytes);
  };
  if (size == 64)
    for (int64_t place = 0; place < whole; place++) put(place, 64);
  else
    for (int64_t place = 0; place < whole; place++) put(place, 4);
  if (whole * size == cols * 2) return;
  std::memset(target, 0, tile.num * size);
  put(whole, cols * 2 - whole * size);
}

}  // namespace TURNOUT_ISA
