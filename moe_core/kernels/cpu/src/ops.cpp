// Decode kernels: few tokens, weights in bfloat16 as they lie in the checkpoint, sums in float32.
// Compiled once for each instruction set, with TURNOUT_ISA as the namespace.
#include "ops.h"

#include <algorithm>
#include <vector>

#include "lanes.h"
#include "pool.h"

namespace TURNOUT_ISA {

using turnout::Pool;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- linear ---------------------------------------------------------------------------------------------------------

static void linear(const bf16* w, const bf16* x, void* out, int out_is_float, int64_t T, int64_t O, int64_t K) {
  // About 64 KiB of weights a unit: long enough to be worth a hand-over, short enough to share evenly.
  const int64_t rows_of_unit = std::max<int64_t>(4, std::min<int64_t>(512, 32768 / std::max<int64_t>(K, 1)) / 4 * 4);
  auto work = [&](int64_t unit) {
    int64_t end = std::min(O, (unit + 1) * rows_of_unit);
    for (int64_t row = unit * rows_of_unit; row < end; row += 4) {
      int num_rows = static_cast<int>(std::min<int64_t>(4, end - row));
      const bf16* rows[4];
      for (int r = 0; r < num_rows; r++) rows[r] = w + (row + r) * K;
      for (int64_t t = 0; t < T; t += 4) {
        int num = static_cast<int>(std::min<int64_t>(4, T - t));
        const bf16* inputs[4];
        for (int n = 0; n < num; n++) inputs[n] = x + (t + n) * K;
        float sums[16];
        dots_upto4(num_rows, rows, num, inputs, K, sums, 4 * K);
        for (int n = 0; n < num; n++)
          for (int r = 0; r < num_rows; r++) {
            int64_t place = (t + n) * O + row + r;
            if (out_is_float)
              static_cast<float*>(out)[place] = sums[r * num + n];
            else
              static_cast<bf16*>(out)[place] = narrow(sums[r * num + n]);
          }
      }
    }
  };
  Pool::instance().run(ceil_div(O, rows_of_unit), work);
}

// ---- mixture of experts ---------------------------------------------------------------------------------------------

// An empty place: the token has fewer than k experts.
constexpr int64_t kNoExpert = -1;

// Routed rows in expert order.
struct Routed {
  std::vector<int64_t> first;  // E + 1: where each expert's rows begin
  std::vector<int64_t> token;  // R
  std::vector<float> weight;   // R
  std::vector<int64_t> active;  // experts that have rows
  std::vector<bf16> hidden;    // (R, F)
};

static bool group(Routed& routed, const int64_t* ids, const float* weights, int64_t T, int64_t k, int64_t E) {
  int64_t R = T * k;
  routed.first.assign(E + 1, 0);
  for (int64_t i = 0; i < R; i++) {
    if (ids[i] == kNoExpert) continue;
    if (ids[i] < 0 || ids[i] >= E) return false;
    routed.first[ids[i] + 1]++;
  }
  routed.active.clear();
  for (int64_t e = 0; e < E; e++) {
    if (routed.first[e + 1]) routed.active.push_back(e);
    routed.first[e + 1] += routed.first[e];
  }
  routed.token.resize(R);
  routed.weight.resize(R);
  std::vector<int64_t> next(routed.first.begin(), routed.first.end() - 1);
  for (int64_t i = 0; i < R; i++) {
    if (ids[i] == kNoExpert) continue;
    int64_t place = next[ids[i]]++;
    routed.token[place] = i / k;
    routed.weight[place] = weights[i];
  }
  return true;
}

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

// ---- attention ------------------------------------------------------------------------------------------------------

struct Scores {
  std::vector<float> of;   // (Q, S)
  std::vector<float> sum;  // (Q, d)
};

static void softmax(float* scores, int64_t length, float scale) {
  float best = scores[0];
  for (int64_t j = 1; j < length; j++) best = std::max(best, scores[j]);
  for (int64_t j = 0; j < length; j++) scores[j] = exp_((scores[j] - best) * scale);
  float total = 0.0f;
  for (int64_t j = 0; j < length; j++) total += scores[j];
  float factor = 1.0f / total;
  for (int64_t j = 0; j < length; j++) scores[j] *= factor;
}

static void attend(const bf16* q, int64_t q_stride, const bf16* keys, const bf16* values, const int64_t* tables,
                   const int64_t* lengths, bf16* out, int64_t B, int64_t H, int64_t G, int64_t d, int64_t M, int64_t P,
                   float scale) {
  const int64_t Q = H / G, step = G * d;
  auto work = [&](int64_t unit) {
    static thread_local Scores scratch;
    const int64_t b = unit / G, g = unit % G, length = lengths[b];
    const int64_t* table = tables + b * M;
    scratch.of.resize(Q * length);
    scratch.sum.assign(Q * d, 0.0f);
    for (int64_t j = 0; j < length; j += 4) {
      int num = static_cast<int>(std::min<int64_t>(4, length - j));
      const bf16* inputs[4];
      for (int n = 0; n < num; n++) inputs[n] = keys + (table[(j + n) / P] * P + (j + n) % P) * step + g * d;
      for (int64_t h = 0; h < Q; h += 4) {
        int num_rows = static_cast<int>(std::min<int64_t>(4, Q - h));
        const bf16* rows[4];
        for (int r = 0; r < num_rows; r++) rows[r] = q + b * q_stride + (g * Q + h + r) * d;
        float sums[16];
        dots_upto4(num_rows, rows, num, inputs, d, sums, 0);
        for (int r = 0; r < num_rows; r++)
          for (int n = 0; n < num; n++) scratch.of[(h + r) * length + j + n] = sums[r * num + n];
      }
    }
    for (int64_t h = 0; h < Q; h++) softmax(scratch.of.data() + h * length, length, scale);
    for (int64_t j = 0; j < length; j++) {
      const bf16* value = values + (table[j / P] * P + j % P) * step + g * d;
      for (int64_t h = 0; h < Q; h++) {
        const float share = scratch.of[h * length + j];
        float* sum = scratch.sum.data() + h * d;
        for (int64_t i = 0; i < d; i++) sum[i] += share * widen(value[i]);
      }
    }
    bf16* target = out + (b * H + g * Q) * d;
    for (int64_t i = 0; i < Q * d; i++) target[i] = narrow(scratch.sum[i]);
  };
  Pool::instance().run(B * G, work);
}

extern const turnout::Ops kOps;
const turnout::Ops kOps = {linear, experts, attend};

}  // namespace TURNOUT_ISA
