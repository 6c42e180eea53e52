// A mixture of gated experts, and a linear map, whose weights lie in panels; for one token as for a whole prompt.
#pragma once
#include "gating.h"
#include "multiply.h"
#include "pool.h"
#include "routed.h"

namespace TURNOUT_ISA {

using turnout::Pool;

// What a call works in; each calling thread keeps its own.
struct Workspace {
  Routed routed;
  Inputs in, gathered, hidden;
  std::vector<Tile> tiles;
  std::vector<int64_t> first_tile;  // of each active expert, and the end
  int64_t most_rows = 0;            // of an expert
};

// From this many tokens on a thread has its columns of the second map in one unit: hidden rows, which are more than the cache holds
// then, come from afar once for each unit.
constexpr int64_t kPromptTokens = 128;

// Columns of hidden rows that a thread works on together: whole groups of codes.
static inline int64_t hidden_panels_of_unit(const Panels& down) { return down.bits == 16 || down.group <= 64 ? 4 : down.group / 16; }

// Panels of the first map that are one unit, whole times `least`: of a prompt eight units for each thread, so that rows are gathered
// for many panels at once.
static inline int64_t panels_of_unit(int64_t panels, int64_t least, int64_t T, int64_t num_active) {
  if (T < kPromptTokens) return least;
  const int64_t units = ceil_div(8 * Pool::instance().num_threads(), std::max<int64_t>(1, num_active));
  return ceil_div(ceil_div(panels, units), least) * least;
}

static inline Workspace& workspace() {
  static thread_local Workspace of_thread;
  return of_thread;
}

// From this many rows on the preparation of inputs is shared among the threads.
constexpr int64_t kManyRows = 16;

template <class Work>
static void run_if_many(int64_t num_rows, int64_t num_units, const Work& work) {
  if (num_rows >= kManyRows) return Pool::instance().run(num_units, work);
  for (int64_t unit = 0; unit < num_units; unit++) work(unit);
}

// Rows of bfloat16 into a tile of inputs.
static void put_rows(Inputs& inputs, const Tile& tile, const Panels& panels, const bf16* const* rows) {
  const int64_t cols = panels.cols;
  if (panels.bits == 16) return put_bf16(inputs, tile, rows, cols);
  static thread_local std::vector<float> of_thread;
  of_thread.resize(cols);
  // Asked for once: a library pays for each look at what a thread keeps.
  float* __restrict const wide = of_thread.data();
  for (int n = 0; n < tile.num; n++) {
    const bf16* const row = rows[n];
    for (int64_t i = 0; i < cols; i++) wide[i] = widen(row[i]);
    put_codes(inputs, tile, tile.first + n, wide, cols);
  }
}

// Rows of one expert's tile: codes are copied from `space.in`, others from `x` (T, D).
static void gather_tile(const Workspace& space, Inputs& gathered, const Tile& tile, const Panels& gate_up, const bf16* x,
                        const int64_t* tokens) {
  const bf16* rows[kMost];
  for (int n = 0; n < tile.num; n++) rows[n] = x + tokens[n] * gate_up.cols;
  if (gate_up.bits == 16) return put_bf16(gathered, tile, rows, gate_up.cols);
  for (int n = 0; n < tile.num && tile.num > 1; n++) put_words(gathered, tile, tile.first + n, space.in.operand(tokens[n]));
}

// The tokens' rows in the order of the experts, unless whoever multiplies them gathers them himself; codes are found once for a
// token, however many experts it has.
static void gather_rows(Workspace& space, const Panels& gate_up, const bf16* x, int64_t T) {
  const Routed& routed = space.routed;
  const int64_t R = static_cast<int64_t>(routed.token.size());
  if (gate_up.bits != 16) {
    space.in.resize(T, gate_up);
    run_if_many(T, T, [&](int64_t t) {
      const bf16* row = x + t * gate_up.cols;
      put_rows(space.in, {t, 1}, gate_up, &row);
    });
  }
  if (T >= kPromptTokens) return;
  space.gathered.resize(R, gate_up);
  run_if_many(R, static_cast<int64_t>(space.tiles.size()), [&](int64_t i) {
    gather_tile(space, space.gathered, space.tiles[i], gate_up, x, routed.token.data() + space.tiles[i].first);
  });
}

// Products of a panel with all rows of an expert that were made and not yet used.
struct Made {
  int64_t active = 0, panel = 0;
  int num_rows = 0;
};

// Sums of two such products, (rows, 32) each with room for a tile more: one is used while the other is made.
class Twofold {
 public:
  explicit Twofold(int64_t most_rows) {
    static thread_local Large<float> of_thread;
    const int64_t size = (most_rows + kMost) * 32;
    of_thread.resize(2 * size + 16);
    float* first = of_thread.data() + (64 - reinterpret_cast<uintptr_t>(of_thread.data()) % 64) % 64 / sizeof(float);
    made_ = first + size, free_ = first;
  }
  float* made() { return made_; }
  float* free() { return free_; }
  void swap() { std::swap(made_, free_); }

 private:
  float *made_, *free_;
};

// hidden[row] = gating(gate · x, up · x) in one panel of rows [n, end) of an expert, whose tiles are given, with `sums` of 16 of gate
// and 16 of up. Where the second map wants codes it goes to `columns` (rows of the expert, columns of the unit).
static void gate_rows(Workspace& space, const Panels& gate_up, const Gating& gating, const Tile* tiles, int64_t p, int n, int end,
                      float* sums, const float* bias, float* columns, int64_t stride) {
  const int64_t F = gate_up.rows / 2, row0 = tiles->first;
  const int width = static_cast<int>(std::min<int64_t>(16, F - p * 16));
  alignas(64) float acts[kMost * 16];
  alignas(64) bf16 rounded[32];
  for (int i = n * 32; i < end * 32 && gating.gate_up_bias; i++) sums[i] += bias[i % 32];
  tiles += n / kMost;
  while (n < end) {
    while (row0 + n >= tiles->first + tiles->num) tiles++;
    const int stop = static_cast<int>(std::min<int64_t>(end, tiles->first + tiles->num - row0));
    gate_and_multiply_rows(gating, sums + n * 32, acts, stop - n);
    for (const float* act = acts; n < stop; n++, act += 16) {
      if (gate_up.bits != 16) {
        std::memcpy(columns + n * stride, act, 64);
        continue;
      }
      store_narrow(rounded, load_f(act), zero_f());
      // Past the last row of a panel act is 0, whatever the gating, or NaN where an input is infinite.
      if (width < 16) std::fill(rounded + width, rounded + 16, bf16{0});
      if (in_tiles(16, tiles->num)) {
        // Two panels are a chunk: the last one, if it is the first of two, fills both.
        uint8_t* place = space.hidden.chunk(*tiles, row0 + n, p / 2) + p % 2 * 32;
        std::memcpy(place, rounded, 32);
        if (p % 2 == 0 && p + 1 == gate_up.panels()) std::memset(place + 32, 0, 32);
        continue;
      }
      for (int i = 0; i < width; i += 2) std::memcpy(space.hidden.word(*tiles, row0 + n, p * 8 + i / 2), rounded + i, 4);
    }
  }
}

// The same of panels [first, end) of one expert. Each panel's products are used while the next's are made.
static void gate_and_up_panels(Workspace& space, const Panels& gate_up, const Gating& gating, const bf16* x, int64_t T, int64_t active,
                               int64_t first, int64_t end) {
  const int64_t F = gate_up.rows / 2, expert = space.routed.active[active], stride = (end - first) * 16;
  const int64_t following = space.routed.active[std::min<int64_t>(active + 1, space.routed.active.size() - 1)];
  const int64_t row0 = space.routed.first[expert], num_rows = space.routed.first[expert + 1] - row0;
  const Tile* tiles = space.tiles.data() + space.first_tile[active];
  const int64_t num_tiles = space.first_tile[active + 1] - space.first_tile[active];
  alignas(64) float bias[2][32];
  static thread_local Large<float> of_thread;
  if (gate_up.bits != 16) of_thread.resize(num_rows * stride);
  float* const columns = of_thread.data();
  // Of a prompt the rows of all experts are more than the cache holds.
  static thread_local Inputs of_expert;
  const Inputs& gathered = T < kPromptTokens ? space.gathered : of_expert;
  const int64_t before = T < kPromptTokens ? 0 : row0;
  if (T >= kPromptTokens) {
    of_expert.resize(num_rows, gate_up);
    for (const Tile* tile = tiles; tile < tiles + num_tiles; tile++)
      gather_tile(space, of_expert, {tile->first - row0, tile->num}, gate_up, x, space.routed.token.data() + tile->first);
  }
  Twofold sums(num_rows);
  Made made;
  const auto use = [&](int n, int stop) {
    gate_rows(space, gate_up, gating, tiles, made.panel, n, stop, sums.made(), bias[made.panel % 2],
              columns ? columns + (made.panel - first) * 16 : nullptr, stride);
  };
  const auto operand_of = [&](const Tile& tile) {
    const bool by_itself = gate_up.bits != 16 && tile.num == 1;
    return by_itself ? space.in.operand(space.routed.token[tile.first]) : gathered.operand(tile.first - before);
  };
  for (int64_t p = first; p < end; p++) {
    for (int half = 0; half < 2 && gating.gate_up_bias; half++)
      widen_bias(gating.gate_up_bias, (2 * expert + half) * F + p * 16, std::min<int64_t>(16, F - p * 16), bias[p % 2] + half * 16, 16);
    const uint8_t* after = p + 1 < gate_up.panels() ? gate_up.panel(expert, p + 1) : gate_up.panel(following, 0);
    Multiplied panel(gate_up, gate_up.panel(expert, p), after, num_tiles);
    panel.by_all(tiles, operand_of, sums.free(), made.num_rows, use);
    sums.swap();
    made = {active, p, static_cast<int>(num_rows)};
  }
  use(0, made.num_rows);
  if (gate_up.bits == 16) return;
  const int64_t group = space.hidden.group_bytes;
  for (const Tile* tile = tiles; tile < tiles + num_tiles; tile++)
    for (int n = 0; n < tile->num; n++)
      for (int64_t col = first * 16; col < std::min(F, end * 16); col += group) {
        const int64_t row = tile->first + n;
        put_group(space.hidden, *tile, row, col / group, columns + (row - row0) * stride + col - first * 16,
                  std::min(F - col, group));
      }
}

static inline void narrow_row(const float* from, bf16* to, int64_t width) {
  int64_t i = 0;
  for (; i + 32 <= width; i += 32) store_narrow(to + i, load_f(from + i), load_f(from + i + 16));
  for (; i < width; i++) to[i] = narrow(from[i]);
}

// out[t] in panels [p0, p1) of all tokens, which takes the experts in order: a thread has columns of all tokens and adds experts in their order.
static void down_panels(Workspace& space, const Panels& down, const bf16* down_bias, int64_t p0, int64_t p1, bf16* out,
                        int64_t T) {
  const Routed& routed = space.routed;
  const int64_t D = down.rows, stride = (p1 - p0) * 32, num_active = static_cast<int64_t>(routed.active.size());
  static thread_local Large<float> of_thread;
  of_thread.assign(T * stride, 0.0f);
  float* const totals = of_thread.data();
  alignas(64) float bias[2][32];
  Twofold sums(space.most_rows);
  Made made;
  int which = 0;
  const auto use = [&](int n, int stop) {
    const int64_t row0 = routed.first[routed.active[made.active]];
    for (; n < stop; n++) {
      float *total = totals + routed.token[row0 + n] * stride + (made.panel - p0) * 32, *sum = sums.made() + n * 32;
      const float weight = routed.weight[row0 + n];
      for (int i = 0; i < 32 && down_bias; i++) sum[i] += bias[which][i];
      for (int i = 0; i < 32; i++) total[i] += weight * sum[i];
    }
  };
  for (int64_t active = 0; active < num_active; active++) {
    const int64_t expert = routed.active[active], following = routed.active[std::min(active + 1, num_active - 1)];
    for (int64_t p = p0; p < p1; p++) {
      const uint8_t* after = p + 1 < p1 ? down.panel(expert, p + 1) : down.panel(following, p0);
      Multiplied panel(down, down.panel(expert, p), after, space.first_tile[active + 1] - space.first_tile[active]);
      panel.by_all(space.tiles.data() + space.first_tile[active], [&](const Tile& tile) { return space.hidden.operand(tile.first); },
                   sums.free(), made.num_rows, use);
      sums.swap();
      made = {active, p, static_cast<int>(routed.first[expert + 1] - routed.first[expert])};
      if (down_bias) widen_bias(down_bias, expert * D + p * 32, D - p * 32, bias[which = 1 - which], 32);
    }
  }
  // Of no token at all there is no expert either.
  if (num_active) use(0, made.num_rows);
  const int64_t d0 = p0 * 32, width = std::min(D, p1 * 32) - d0;
  for (int64_t t = 0; t < T; t++) narrow_row(totals + t * stride, out + t * D + d0, width);
}

// gate_up: E matrices (2F, D), their halves paired; down: E matrices (D, F).
static int mixture(const Panels& gate_up, const Panels& down, const Gating& gating, const bf16* x, const int64_t* ids,
                   const float* weights, bf16* out, int64_t T, int64_t k) {
  Workspace& space = workspace();
  Routed& routed = space.routed;
  const int64_t E = down.stack;
  if (!group(routed, ids, weights, T, k, E)) return 1;
  const int64_t R = routed.first[E], num_active = static_cast<int64_t>(routed.active.size());
  space.tiles.clear();
  space.first_tile.clear();
  space.most_rows = 0;
  for (int64_t expert : routed.active) {
    space.most_rows = std::max(space.most_rows, routed.first[expert + 1] - routed.first[expert]);
    space.first_tile.push_back(static_cast<int64_t>(space.tiles.size()));
    tiles_of(gate_up, routed.first[expert], routed.first[expert + 1], space.tiles);
  }
  space.first_tile.push_back(static_cast<int64_t>(space.tiles.size()));
  gather_rows(space, gate_up, x, T);
  space.hidden.resize(R, down);
  const int64_t f_panels = gate_up.panels(), f_of_unit = panels_of_unit(f_panels, hidden_panels_of_unit(down), T, num_active);
  const int64_t f_units = ceil_div(f_panels, f_of_unit);
  Pool::instance().run(num_active * f_units, [&](int64_t unit) {
    const TilesOfUnit of_unit;
    const int64_t p = unit % f_units * f_of_unit;
    gate_and_up_panels(space, gate_up, gating, x, T, unit / f_units, p, std::min(f_panels, p + f_of_unit));
  });
  const int64_t d_panels = down.panels(), d_of_unit = T < kPromptTokens ? 3 : ceil_div(d_panels, Pool::instance().num_threads());
  Pool::instance().run(ceil_div(d_panels, d_of_unit), [&](int64_t unit) {
    const TilesOfUnit of_unit;
    down_panels(space, down, gating.down_bias, unit * d_of_unit, std::min(d_panels, (unit + 1) * d_of_unit), out, T);
  });
  return 0;
}

// out[t][o] = row o · x[t] of a single matrix; out is float32 or bfloat16.
static void map(const Panels& m, const bf16* x, void* out, int out_is_float, int64_t T) {
  Workspace& space = workspace();
  space.tiles.clear();
  tiles_of(m, 0, T, space.tiles);
  space.in.resize(T, m);
  run_if_many(T, static_cast<int64_t>(space.tiles.size()), [&](int64_t i) {
    const bf16* rows[kMost];
    for (int n = 0; n < space.tiles[i].num; n++) rows[n] = x + (space.tiles[i].first + n) * m.cols;
    put_rows(space.in, space.tiles[i], m, rows);
  });
  // About 64 KiB of weights a unit: long enough to be worth a hand-over, short enough to share evenly.
  const int64_t panels = m.panels(), of_unit = std::max<int64_t>(1, 65536 / m.panel_bytes());
  Pool::instance().run(ceil_div(panels, of_unit), [&](int64_t unit) {
    const TilesOfUnit tiles_of_unit;
    Twofold sums(T);
    Made made;
    const auto use = [&](int n, int stop) {
      const int64_t width = std::min<int64_t>(32, m.rows - made.panel * 32);
      for (const float* sum = sums.made() + n * 32; n < stop; n++, sum += 32) {
        const int64_t place = n * m.rows + made.panel * 32;
        if (out_is_float)
          std::memcpy(static_cast<float*>(out) + place, sum, width * 4);
        else
          narrow_row(sum, static_cast<bf16*>(out) + place, width);
      }
    };
    for (int64_t p = unit * of_unit; p < std::min(panels, (unit + 1) * of_unit); p++) {
      Multiplied panel(m, m.panel(0, p), m.panel(0, p + 1), static_cast<int64_t>(space.tiles.size()));
      panel.by_all(space.tiles.data(), [&](const Tile& tile) { return space.in.operand(tile.first); }, sums.free(), made.num_rows, use);
      sums.swap();
      made = {0, p, static_cast<int>(T)};
    }
    use(0, made.num_rows);
  });
}

// out[t] = row ids[t] of a single matrix of bfloat16.
static int look_up(const Panels& m, const int64_t* ids, bf16* out, int64_t T) {
  for (int64_t t = 0; t < T; t++, out += m.cols) {
    if (ids[t] < 0 || ids[t] >= m.rows) return 1;
    const uint8_t* panel = m.panel(0, ids[t] / 32);
    if (m.strays) {
      look_up_twelve(m, panel, ids[t] % 32, out);
      continue;
    }
    const uint8_t* words = panel + ids[t] % 32 * 4;
    for (int64_t i = 0; i < m.cols; i += 2) std::memcpy(out + i, words + i * 64, i + 1 < m.cols ? 4 : 2);
  }
  return 0;
}

// The four bytes of one step of a row; of 4 bits two codes a byte, the even column in the low half, become columns 0-3 low
// and 4-7 high, counted down from 15 where `turned`.
static inline void put_step(const Panels& to, const uint8_t* source, int64_t left, bool turned, uint8_t* target) {
  uint8_t raw[4] = {};
  std::memcpy(raw, source, left < 4 ? left : 4);
  if (to.bits == 4) {
    uint8_t code[8];
    for (int i = 0; i < 4; i++) code[2 * i] = raw[i] & 15, code[2 * i + 1] = raw[i] >> 4;
    for (int i = 0; i < 4; i++) raw[i] = static_cast<uint8_t>((code[i] | (code[i + 4] << 4)) ^ (turned ? 255 : 0));
  }
  std::memcpy(target, raw, 4);
}

// Codes as a checkpoint holds them, row by row, into panel p of matrix s; rows of a last panel that are not there stay zero. Where
// there are factors they come in place of zero points, one for 32 columns of a row: 7 in the upper half, for 8, says that the scale
// was negative.
static void pack_panel_of(const Panels& to, int64_t s, int64_t p, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                          uint8_t* panel) {
  const int64_t bytes_of_row = to.bits == 16 ? to.cols * 2 : (to.cols * to.bits + 7) / 8;
  const int64_t steps = to.steps(), groups = to.groups(), steps_of_group = to.bits == 16 ? steps : to.group / to.cols_of_step();
  const int64_t factors = to.has_factors ? ceil_div(to.cols, 32) : 0;
  std::memset(panel, 0, to.panel_bytes());
  for (int64_t lane = 0; lane < 32; lane++) {
    if (to.row_of(p, lane) >= to.rows) continue;
    const int64_t row = s * to.rows + to.row_of(p, lane);
    for (int64_t step = 0; step < steps; step++) {
      uint8_t* place = panel + step * 128 + (step / steps_of_group + 1) * to.head_bytes() + lane * 4;
      const bool turned = factors && zeros[row * factors + step / 4] >> 4 == 7;
      put_step(to, codes + row * bytes_of_row + step * 4, bytes_of_row - step * 4, turned, place);
    }
    for (int64_t i = 0; i < factors; i++) {
      uint8_t* head = panel + i * 32 / to.group * to.group_bytes();
      head[64 + i * 32 % to.group / 64 * 64 + lane * 2 + i % 2] = zeros[row * factors + i];
    }
    for (int64_t g = 0; g < groups; g++) {
      uint8_t* head = panel + g * to.group_bytes();
      std::memcpy(head + lane * 2, scales + row * groups + g, 2);
      if (to.has_zeros) head[64 + lane] = zeros[row * groups + g];
    }
  }
}

// Calls with(panel of a stack of bfloat16, its number) for each, plain, on all threads.
template <class With>
static void with_plain_panels(const Panels& of, const uint8_t* weights, const With& with) {
  Panels plain = of;
  plain.strays = 0;
  Pool::instance().run(of.stack * of.panels(), [&](int64_t unit) {
    static thread_local Large<bf16> of_thread;
    of_thread.resize(plain.panel_bytes() / 2);
    pack_panel_of(plain, unit / of.panels(), unit % of.panels(), weights, nullptr, nullptr, reinterpret_cast<uint8_t*>(of_thread.data()));
    with(of_thread.data(), unit);
  });
}

// The most strays that a panel of these weights would have.
static int64_t most_strays(const Panels& of, const uint8_t* weights) {
  std::vector<int64_t> counts(of.stack * of.panels());
  with_plain_panels(of, weights, [&](const bf16* panel, int64_t unit) { counts[unit] = count_strays(panel, of.steps() * 64); });
  return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

static void pack(const Panels& to, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros) {
  if (to.strays)
    return with_plain_panels(to, codes, [&](const bf16* panel, int64_t unit) {
      put_twelve(to, panel, to.panel(unit / to.panels(), unit % to.panels()));
    });
  Pool::instance().run(to.stack * to.panels(), [&](int64_t unit) {
    const int64_t s = unit / to.panels(), p = unit % to.panels();
    pack_panel_of(to, s, p, codes, scales, zeros, to.panel(s, p));
  });
}

}  // namespace TURNOUT_ISA
