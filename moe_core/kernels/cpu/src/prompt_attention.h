// Attention of several new tokens of one sequence: keys and values in panels, twelve queries at a time.
//
// Scores are products of queries with panels of keys, outputs products of shares with panels of values; a share is the
// exponential of a score, rounded to bfloat16, and sums of shares stay in float32.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "attention.h"
#include "mixture.h"

namespace TURNOUT_ISA {

// The tokens [first, first + num) of a step, which are the newest of a sequence of `length` tokens.
struct Prompt {
  int64_t first, num, length;
  const int64_t* table;
};

struct Heads {
  int64_t H, G, d, P;
  const bf16 *keys, *values;  // (blocks, P, G, d)

  const bf16* key(const Prompt& prompt, int64_t j, int64_t g) const { return keys + place(prompt, j, g); }
  const bf16* value(const Prompt& prompt, int64_t j, int64_t g) const { return values + place(prompt, j, g); }
  int64_t place(const Prompt& prompt, int64_t j, int64_t g) const {
    return ((prompt.table[j / P] * P + j % P) * G + g) * d;
  }
};

// One key-value head's keys (length, d), and its values the other way round (d, length).
static void pack_keys(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to) {
  const int64_t d = heads.d;
  std::memset(to.memory, 0, to.panels() * to.panel_bytes());
  for (int64_t j = 0; j < prompt.length; j++) {
    const bf16* key = heads.key(prompt, j, g);
    uint8_t* target = to.panel(0, j / 32) + j % 32 * 4;
    for (int64_t i = 0; i < d; i += 2) std::memcpy(target + i * 64, key + i, i + 1 < d ? 4 : 2);
  }
}

static void pack_values(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to) {
  const int64_t d = heads.d;
  std::memset(to.memory, 0, to.panels() * to.panel_bytes());
  for (int64_t j = 0; j < prompt.length; j++) {
    const bf16* value = heads.value(prompt, j, g);
    for (int64_t p = 0; p < to.panels(); p++) {
      bf16* target = reinterpret_cast<bf16*>(to.panel(0, p) + j / 2 * 128) + j % 2;
      for (int64_t i = p * 32; i < std::min(d, p * 32 + 32); i++) target[(i - p * 32) * 2] = value[i];
    }
  }
}

struct PromptScratch {
  std::vector<uint8_t> queries, shares;
  std::vector<float> scores;
  std::vector<bf16> row;
};

// exp(scale · (score - best)) in bfloat16 for keys up to `seen`, 0 past them; one over their sum.
static float shares_of(const float* scores, int64_t seen, int64_t size, float scale, bf16* out) {
  float best = -std::numeric_limits<float>::infinity(), total = 0.0f;
  for (int64_t j = 0; j < seen; j++) best = scores[j] > best ? scores[j] : best;
  float sums[16] = {};
  int64_t j = 0;
  for (; j + 16 <= seen; j += 16)
    for (int lane = 0; lane < 16; lane++) {
      const float share = exp_((scores[j + lane] - best) * scale);
      sums[lane] += share;
      out[j + lane] = narrow(share);
    }
  for (; j < seen; j++) {
    const float share = exp_((scores[j] - best) * scale);
    total += share;
    out[j] = narrow(share);
  }
  for (; j < size; j++) out[j] = 0;
  for (float sum : sums) total += sum;
  return 1.0f / total;
}

// Rows [r0, r0 + num) of one key-value head; row r is query head r % Q of the prompt's token r / Q.
static void attend_tile(const Heads& heads, const Prompt& prompt, int64_t g, int64_t r0, int num, const Panels& keys,
                        Panels values, const bf16* q, int64_t q_stride, bf16* out, float scale) {
  static thread_local PromptScratch scratch;
  const int64_t Q = heads.H / heads.G, d = heads.d, before = prompt.length - prompt.num;
  const int64_t seen = before + (r0 + num - 1) / Q + 1, key_panels = ceil_div(seen, 32), size = key_panels * 32;
  const int64_t q_words = ceil_div(d, 2);
  scratch.queries.assign(q_words * num * 4, 0);
  scratch.scores.resize(num * size);
  scratch.shares.resize(size / 2 * num * 4);
  scratch.row.resize(size);
  for (int n = 0; n < num; n++) {
    const bf16* query = q + (prompt.first + (r0 + n) / Q) * q_stride + (g * Q + (r0 + n) % Q) * d;
    for (int64_t i = 0; i < d; i += 2)
      std::memcpy(scratch.queries.data() + (i / 2 * num + n) * 4, query + i, i + 1 < d ? 4 : 2);
  }
  float sums[kInputs * 32], factors[kInputs];
  for (int64_t p = 0; p < key_panels; p++) {
    multiply(num, keys, keys.panel(0, p), keys.panel(0, p + 1), {scratch.queries.data(), nullptr, nullptr}, sums);
    for (int n = 0; n < num; n++) std::memcpy(scratch.scores.data() + n * size + p * 32, sums + n * 32, 32 * 4);
  }
  for (int n = 0; n < num; n++) {
    const int64_t own = before + (r0 + n) / Q + 1;
    factors[n] = shares_of(scratch.scores.data() + n * size, own, size, scale, scratch.row.data());
    for (int64_t s = 0; s < size / 2; s++)
      std::memcpy(scratch.shares.data() + (s * num + n) * 4, scratch.row.data() + s * 2, 4);
  }
  for (int64_t p = 0; p < values.panels(); p++) {
    const uint8_t* panel = values.panel(0, p);
    // No further than the last key that one of these rows sees.
    Panels part = values;
    part.cols = seen;
    multiply(num, part, panel, panel, {scratch.shares.data(), nullptr, nullptr}, sums);
    const int64_t width = std::min<int64_t>(32, d - p * 32);
    for (int n = 0; n < num; n++) {
      bf16* target = out + ((prompt.first + (r0 + n) / Q) * heads.H + g * Q + (r0 + n) % Q) * d + p * 32;
      for (int64_t i = 0; i < width; i++) target[i] = narrow(sums[n * 32 + i] * factors[n]);
    }
  }
}

// out (T, H, d) of the tokens of some prompts; their keys and values lie in the cache already.
static void attend_prompts(const Heads& heads, const std::vector<Prompt>& prompts, const bf16* q, int64_t q_stride,
                           bf16* out, float scale) {
  static thread_local std::vector<uint8_t> memory;
  static thread_local std::vector<Panels> keys, values;
  const int64_t G = heads.G, Q = heads.H / G;
  keys.clear();
  values.clear();
  int64_t bytes = 0;
  for (const Prompt& prompt : prompts)
    for (int64_t g = 0; g < G; g++)
      for (auto* panels : {&keys, &values}) {
        const bool of_keys = panels == &keys;
        panels->push_back({nullptr, 1, of_keys ? prompt.length : heads.d, of_keys ? heads.d : prompt.length, 16, 0, 0, 0});
        bytes += panels->back().panels() * panels->back().panel_bytes();
      }
  memory.resize(bytes + 64);
  uint8_t* place = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  const int64_t num = static_cast<int64_t>(keys.size());
  for (int64_t i = 0; i < num; i++)
    for (Panels* panels : {&keys[i], &values[i]}) {
      panels->memory = place;
      place += panels->panels() * panels->panel_bytes();
    }
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  const Panels *own_keys = keys.data(), *own_values = values.data();
  Pool::instance().run(2 * num, [&](int64_t unit) {
    const int64_t i = unit / 2;
    if (unit % 2)
      pack_values(heads, prompts[i / G], i % G, own_values[i]);
    else
      pack_keys(heads, prompts[i / G], i % G, own_keys[i]);
  });
  for (int64_t c = 0; c < static_cast<int64_t>(prompts.size()); c++) {
    const Prompt& prompt = prompts[c];
    const int64_t rows = prompt.num * Q, tiles = ceil_div(rows, kInputs);
    // The last tiles see the most keys: they come first, so that nobody waits for them.
    Pool::instance().run(G * tiles, [&](int64_t unit) {
      const int64_t g = unit % G, tile = tiles - 1 - unit / G, r0 = rows * tile / tiles;
      const int num_rows = static_cast<int>(rows * (tile + 1) / tiles - r0);
      attend_tile(heads, prompt, g, r0, num_rows, own_keys[c * G + g], own_values[c * G + g], q, q_stride, out, scale);
    });
  }
}

static void attend_prompt(const bf16* q, int64_t q_stride, const bf16* keys, const bf16* values, const int64_t* table,
                          bf16* out, int64_t T, int64_t length, int64_t H, int64_t G, int64_t d, int64_t P, float scale) {
  attend_prompts({H, G, d, P, keys, values}, {{0, T, length, table}}, q, q_stride, out, scale);
}

}  // namespace TURNOUT_ISA
