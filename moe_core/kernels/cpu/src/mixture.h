// A mixture of SwiGLU experts, and a linear map, whose weights lie in panels; for one token as for a whole prompt.
#pragma once
#include "multiply.h"
#include "pool.h"
#include "routed.h"

namespace TURNOUT_ISA {

using turnout::Pool;

// What a call works in; each calling thread keeps its own.
struct Workspace {
  Routed routed;
  Inputs in, hidden;
  std::vector<float> activation;  // (R, F), where the second map wants codes
  std::vector<int64_t> identity;
};

static inline Workspace& workspace() {
  static thread_local Workspace of_thread;
  return of_thread;
}

static inline void count_up(std::vector<int64_t>& identity, int64_t size) {
  for (int64_t row = static_cast<int64_t>(identity.size()); row < size; row++) identity.push_back(row);
}

// From this many rows on the preparation of inputs is shared among the threads.
constexpr int64_t kManyRows = 32;

static void prepare(Inputs& inputs, const Panels& panels, const bf16* x, int64_t num_rows) {
  inputs.resize(num_rows, panels);
  const int64_t cols = panels.cols;
  auto work = [&](int64_t row) {
    if (panels.bits == 16) return put_bf16(inputs, row, x + row * cols, cols);
    static thread_local std::vector<float> wide;
    wide.resize(cols);
    for (int64_t i = 0; i < cols; i++) wide[i] = widen(x[row * cols + i]);
    put_codes(inputs, row, wide.data(), cols, panels.group);
  };
  if (num_rows >= kManyRows) return Pool::instance().run(num_rows, work);
  for (int64_t row = 0; row < num_rows; row++) work(row);
}

static inline void silu_and_multiply(const float* gate, const float* up, float* out, int num) {
  for (int i = 0; i < num; i++) out[i] = gate[i] / (1.0f + exp_(-gate[i])) * up[i];
}

// hidden[row] = silu(gate · x) * (up · x) in panels [first, end) of one expert.
static void gate_and_up_panels(Workspace& space, const Panels& gate_up, int64_t expert, int64_t first, int64_t end) {
  const Routed& routed = space.routed;
  const int64_t F = gate_up.rows, row0 = routed.first[expert], row1 = routed.first[expert + 1];
  constexpr int most = kInputs;
  const bool codes = gate_up.bits != 16;
  float tile[kInputs * 32], act[16];
  for (int64_t p = first; p < end; p++) {
    const int width = static_cast<int>(std::min<int64_t>(16, F - p * 16));
    for (int64_t row = row0; row < row1; row += most) {
      const int num = static_cast<int>(std::min<int64_t>(most, row1 - row));
      multiply(num, {&gate_up, {2 * expert, 2 * expert + 1}, {p, p}, &space.in, routed.token.data() + row}, tile);
      for (int n = 0; n < num; n++) {
        silu_and_multiply(tile + n * 32, tile + n * 32 + 16, act, 16);
        if (codes) {
          std::memcpy(space.activation.data() + (row + n) * F + p * 16, act, width * 4);
          continue;
        }
        bf16* hidden = reinterpret_cast<bf16*>(space.hidden.rows.data() + (row + n) * space.hidden.stride) + p * 16;
        for (int i = 0; i < width; i++) hidden[i] = narrow(act[i]);
      }
    }
  }
}

// gate_up: a stack of 2E matrices (F, D), gate and up of each expert in turn; down: E matrices (D, F).
static int mixture(const Panels& gate_up, const Panels& down, const bf16* x, const int64_t* ids, const float* weights,
                   bf16* out, int64_t T, int64_t k) {
  Workspace& space = workspace();
  Routed& routed = space.routed;
  const int64_t E = down.stack, D = down.rows, F = down.cols;
  if (!group(routed, ids, weights, T, k, E)) return 1;
  const int64_t R = routed.first[E], num_active = static_cast<int64_t>(routed.active.size());
  prepare(space.in, gate_up, x, T);
  space.hidden.resize(R, down);
  const bool codes = gate_up.bits != 16;
  if (codes)
    space.activation.resize(R * F);
  else
    // Past the last column lie what earlier calls left.
    for (int64_t row = 0; row < R; row++)
      std::memset(space.hidden.rows.data() + row * space.hidden.stride + F * 2, 0, space.hidden.stride - F * 2);
  const int64_t f_panels = gate_up.panels(), f_of_unit = 4, f_units = ceil_div(f_panels, f_of_unit);
  Pool::instance().run(num_active * f_units, [&](int64_t unit) {
    const int64_t p = unit % f_units * f_of_unit;
    gate_and_up_panels(space, gate_up, routed.active[unit / f_units], p, std::min(f_panels, p + f_of_unit));
  });
  if (codes) {
    auto quantise = [&](int64_t row) { put_codes(space.hidden, row, space.activation.data() + row * F, F, down.group); };
    if (R >= kManyRows)
      Pool::instance().run(R, quantise);
    else
      for (int64_t row = 0; row < R; row++) quantise(row);
  }
  count_up(space.identity, R);
  // Each unit owns some output columns of all tokens and adds experts in their order: the threads change nothing.
  const int64_t d_panels = down.panels(), d_of_unit = T > 32 ? 6 : 2;
  Pool::instance().run(ceil_div(d_panels, d_of_unit), [&](int64_t unit) {
    static thread_local std::vector<float> sums;
    const int64_t p0 = unit * d_of_unit, p1 = std::min(d_panels, p0 + d_of_unit), stride = d_of_unit * 16;
    constexpr int most = kInputs;
    float tile[kInputs * 32];
    sums.assign(T * stride, 0.0f);
    for (int64_t expert : routed.active)
      for (int64_t p = p0; p < p1; p += 2)
        for (int64_t row = routed.first[expert]; row < routed.first[expert + 1]; row += most) {
          const int num = static_cast<int>(std::min<int64_t>(most, routed.first[expert + 1] - row));
          const int64_t second = std::min(p + 1, p1 - 1);
          multiply(num, {&down, {expert, expert}, {p, second}, &space.hidden, space.identity.data() + row}, tile);
          const int64_t width = std::min<int64_t>(32, (p1 - p) * 16);
          for (int n = 0; n < num; n++) {
            float* sum = sums.data() + routed.token[row + n] * stride + (p - p0) * 16;
            const float weight = routed.weight[row + n];
            for (int64_t i = 0; i < width; i++) sum[i] += weight * tile[n * 32 + i];
          }
        }
    const int64_t d0 = p0 * 16, width = std::min(D, p1 * 16) - d0;
    for (int64_t t = 0; t < T; t++)
      for (int64_t d = 0; d < width; d++) out[t * D + d0 + d] = narrow(sums[t * stride + d]);
  });
  return 0;
}

// out[t][o] = row o · x[t] of a single matrix; out is float32 or bfloat16.
static void map(const Panels& m, const bf16* x, void* out, int out_is_float, int64_t T) {
  Workspace& space = workspace();
  prepare(space.in, m, x, T);
  count_up(space.identity, T);
  const int64_t panels = m.panels();
  Pool::instance().run(ceil_div(panels, 2), [&](int64_t unit) {
    float tile[kInputs * 32];
    const int64_t p = 2 * unit, width = std::min<int64_t>(32, m.rows - p * 16);
    for (int64_t t = 0; t < T; t += kInputs) {
      const int num = static_cast<int>(std::min<int64_t>(kInputs, T - t));
      multiply(num, {&m, {0, 0}, {p, std::min(p + 1, panels - 1)}, &space.in, space.identity.data() + t}, tile);
      for (int n = 0; n < num; n++) {
        const int64_t place = (t + n) * m.rows + p * 16;
        if (out_is_float)
          std::memcpy(static_cast<float*>(out) + place, tile + n * 32, width * 4);
        else
          for (int64_t i = 0; i < width; i++) static_cast<bf16*>(out)[place + i] = narrow(tile[n * 32 + i]);
      }
    }
  });
}

// Codes as a checkpoint holds them, row by row, into panels; rows of a last panel that are not there stay zero.
static void pack(const Panels& to, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros) {
  const int64_t bytes_of_row = to.bits == 16 ? to.cols * 2 : (to.cols * to.bits + 7) / 8;
  const int64_t panels = to.panels(), steps = to.steps(), groups = to.groups();
  Pool::instance().run(to.stack * panels, [&](int64_t unit) {
    const int64_t s = unit / panels, p = unit % panels;
    uint8_t* target = to.panel(s, p);
    std::memset(target, 0, steps * 64);
    for (int64_t lane = 0; lane < 16 && p * 16 + lane < to.rows; lane++) {
      const int64_t row = s * to.rows + p * 16 + lane;
      const uint8_t* source = codes + row * bytes_of_row;
      for (int64_t step = 0; step < steps; step++) {
        uint8_t* word = target + step * 64 + lane * 4;
        const int64_t left = bytes_of_row - step * 4;
        uint8_t raw[4] = {};
        std::memcpy(raw, source + step * 4, left < 4 ? left : 4);
        if (to.bits == 4) {
          // Two codes a byte, the even column in the low half: to columns 0-3 low, 4-7 high.
          uint8_t code[8];
          for (int i = 0; i < 4; i++) code[2 * i] = raw[i] & 15, code[2 * i + 1] = raw[i] >> 4;
          for (int i = 0; i < 4; i++) raw[i] = static_cast<uint8_t>(code[i] | (code[i + 4] << 4));
        }
        std::memcpy(word, raw, 4);
      }
      for (int64_t g = 0; g < groups; g++) {
        const int64_t place = to.meta(s, p) + g * 16 + lane;
        to.scales[place] = scales[row * groups + g];
        if (to.zeros) to.zeros[place] = zeros[row * groups + g];
      }
    }
    for (int64_t lane = std::min<int64_t>(16, to.rows - p * 16); lane < 16; lane++)
      for (int64_t g = 0; g < groups; g++) {
        to.scales[to.meta(s, p) + g * 16 + lane] = 0;
        if (to.zeros) to.zeros[to.meta(s, p) + g * 16 + lane] = 0;
      }
  });
}

}  // namespace TURNOUT_ISA
