// A mixture of SwiGLU experts for few tokens, weights in bfloat16 as they lie in the checkpoint.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "pool.h"
#include "routed.h"

namespace TURNOUT_ISA {

using turnout::Pool;

// hidden[row][f] = silu(gate) * up for f in [first, first + 4) of one expert.
static void gate_and_up(Routed& routed, const bf16* gate_up, const bf16* x, int64_t expert, int64_t f, int64_t end,
                        int64_t D, int64_t F) {
  const bf16* base = gate_up + expert * 2 * F * D;
  for (; f < end; f += 2) {
    int pair = static_cast<int>(std::min<int64_t>(2, end - f));
    const bf16* rows[4];
    for (int r = 0; r < pair; r++) {
      rows[r] = base + (f + r) * D;
      rows[pair + r] = base + (F + f + r) * D;
    }
    for (int64_t row = routed.first[expert]; row < routed.first[expert + 1]; row += 4) {
      int num = static_cast<int>(std::min<int64_t>(4, routed.first[expert + 1] - row));
      const bf16* inputs[4];
      for (int n = 0; n < num; n++) inputs[n] = x + routed.token[row + n] * D;
      float sums[16];
      dots_upto4(2 * pair, rows, num, inputs, D, sums, 2 * D);
      for (int r = 0; r < pair; r++)
        for (int n = 0; n < num; n++) {
          float gate = sums[r * num + n], up = sums[(pair + r) * num + n];
          routed.hidden[(row + n) * F + f + r] = narrow(gate / (1.0f + exp_(-gate)) * up);
        }
    }
  }
}

static int experts(const bf16* gate_up, const bf16* down, const bf16* x, const int64_t* ids, const float* weights,
                   bf16* out, int64_t T, int64_t k, int64_t E, int64_t D, int64_t F) {
  static thread_local Routed routed_of_thread;
  Routed& routed = routed_of_thread;
  if (!group(routed, ids, weights, T, k, E)) return 1;
  routed.hidden.resize(T * k * F);
  constexpr int64_t kFf = 16, kOut = 16;
  int64_t per_expert = ceil_div(F, kFf);
  auto first_half = [&](int64_t unit) {
    int64_t f = (unit % per_expert) * kFf;
    gate_and_up(routed, gate_up, x, routed.active[unit / per_expert], f, std::min(F, f + kFf), D, F);
  };
  Pool::instance().run(static_cast<int64_t>(routed.active.size()) * per_expert, first_half);
  // Each unit owns some output columns of all tokens: nothing is added to by two threads, so the order of the sums,
  // and with it the result, does not depend on the threads.
  auto second_half = [&](int64_t unit) {
    static thread_local std::vector<float> sums;
    int64_t d0 = unit * kOut, width = std::min(kOut, D - d0);
    sums.assign(T * kOut, 0.0f);
    for (int64_t expert : routed.active)
      for (int64_t d = 0; d < width; d += 4) {
        int num_rows = static_cast<int>(std::min<int64_t>(4, width - d));
        const bf16* rows[4];
        for (int r = 0; r < num_rows; r++) rows[r] = down + (expert * D + d0 + d + r) * F;
        for (int64_t row = routed.first[expert]; row < routed.first[expert + 1]; row += 4) {
          int num = static_cast<int>(std::min<int64_t>(4, routed.first[expert + 1] - row));
          const bf16* inputs[4];
          for (int n = 0; n < num; n++) inputs[n] = routed.hidden.data() + (row + n) * F;
          float dot[16];
          dots_upto4(num_rows, rows, num, inputs, F, dot, 4 * F);
          for (int n = 0; n < num; n++)
            for (int r = 0; r < num_rows; r++)
              sums[routed.token[row + n] * kOut + d + r] += routed.weight[row + n] * dot[r * num + n];
        }
      }
    for (int64_t t = 0; t < T; t++)
      for (int64_t d = 0; d < width; d++) out[t * D + d0 + d] = narrow(sums[t * kOut + d]);
  };
  Pool::instance().run(ceil_div(D, kOut), second_half);
  return 0;
}

}  // namespace TURNOUT_ISA
