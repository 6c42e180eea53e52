// Attention of one new token a sequence over paged keys and values.
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"
#include "pool.h"

namespace TURNOUT_ISA {

using turnout::Pool;

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

}  // namespace TURNOUT_ISA
