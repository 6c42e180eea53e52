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

// The first key that any of a prompt's tokens sees, on the border of a panel.
static int64_t first_seen(const Heads& heads, const Prompt& prompt) {
  return heads.window ? std::max<int64_t>(0, prompt.length - prompt.num + 1 - heads.window) / 32 * 32 : 0;
}

// One key-value head's keys (seen, d), and its values the other way round (e, seen).
static void pack_keys(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to) {
  const int64_t d = heads.d, base = first_seen(heads, prompt);
  std::memset(to.memory, 0, to.panels() * to.panel_bytes());
  for (int64_t j = 0; j < prompt.length - base; j++) {
    const bf16* key = key_of(heads, prompt.table, base + j, g);
    uint8_t* target = to.panel(0, j / 32) + j % 32 * 4;
    for (int64_t i = 0; i < d; i += 2) std::memcpy(target + i * 64, key + i, i + 1 < d ? 4 : 2);
  }
}

static void pack_values(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to) {
  const int64_t e = heads.e, base = first_seen(heads, prompt);
  std::memset(to.memory, 0, to.panels() * to.panel_bytes());
  for (int64_t j = 0; j < prompt.length - base; j++) {
    const bf16* value = value_of(heads, prompt.table, base + j, g);
    for (int64_t p = 0; p < to.panels(); p++) {
      bf16* target = reinterpret_cast<bf16*>(to.panel(0, p) + j / 2 * 128) + j % 2;
      for (int64_t i = p * 32; i < std::min(e, p * 32 + 32); i++) target[(i - p * 32) * 2] = value[i];
    }
  }
}

struct PromptScratch {
  std::vector<uint8_t> queries, shares;
  std::vector<float> scores;
  std::vector<bf16> row;
};

// exp(scale · (score - best)) in bfloat16 for keys from `first` up to `end`, 0 elsewhere; one over their sum.
static float shares_of(const float* scores, int64_t first, int64_t end, int64_t size, float scale, const float* sink,
                       bf16* out) {
  float best = sink ? *sink : -std::numeric_limits<float>::infinity();
  for (int64_t j = first; j < end; j++) best = scores[j] > best ? scores[j] : best;
  float sums[16] = {}, total = sink ? exp_((*sink - best) * scale) : 0.0f;
  for (int64_t j = 0; j < first; j++) out[j] = 0;
  int64_t j = first;
  for (; j + 16 <= end; j += 16)
    for (int lane = 0; lane < 16; lane++) {
      const float share = exp_((scores[j + lane] - best) * scale);
      sums[lane] += share;
      out[j + lane] = narrow(share);
    }
  for (; j < end; j++) {
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
                        const Panels& values, const bf16* q, int64_t q_stride, bf16* out) {
  static thread_local PromptScratch scratch;
  const int64_t Q = heads.H / heads.G, d = heads.d, e = heads.e, base = first_seen(heads, prompt);
  // Keys are counted from the first panel that one of these rows sees into.
  const int64_t before = prompt.length - prompt.num - base;
  const int64_t from = heads.window ? std::max<int64_t>(0, before + r0 / Q + 1 - heads.window) / 32 : 0;
  const int64_t seen = before + (r0 + num - 1) / Q + 1 - from * 32, key_panels = ceil_div(seen, 32), size = key_panels * 32;
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
    multiply(num, keys, keys.panel(0, from + p), keys.panel(0, from + p + 1), {scratch.queries.data(), nullptr, nullptr}, sums);
    for (int n = 0; n < num; n++) std::memcpy(scratch.scores.data() + n * size + p * 32, sums + n * 32, 32 * 4);
  }
  for (int n = 0; n < num; n++) {
    const int64_t end = before + (r0 + n) / Q + 1 - from * 32;
    const int64_t first = heads.window ? std::max<int64_t>(0, end - heads.window) : 0;
    const float sink = heads.sinks ? sink_of(heads, g * Q + (r0 + n) % Q) : 0.0f;
    factors[n] = shares_of(scratch.scores.data() + n * size, first, end, size, heads.scale, heads.sinks ? &sink : nullptr,
                           scratch.row.data());
    for (int64_t s = 0; s < size / 2; s++)
      std::memcpy(scratch.shares.data() + (s * num + n) * 4, scratch.row.data() + s * 2, 4);
  }
  // No further than the last key that one of these rows sees.
  Panels part = values;
  part.cols = seen;
  for (int64_t p = 0; p < values.panels(); p++) {
    // Two keys a step.
    const uint8_t* panel = values.panel(0, p) + from * 16 * 128;
    multiply(num, part, panel, panel, {scratch.shares.data(), nullptr, nullptr}, sums);
    const int64_t width = std::min<int64_t>(32, e - p * 32);
    for (int n = 0; n < num; n++) {
      bf16* target = out + ((prompt.first + (r0 + n) / Q) * heads.H + g * Q + (r0 + n) % Q) * e + p * 32;
      for (int64_t i = 0; i < width; i++) target[i] = narrow(sums[n * 32 + i] * factors[n]);
    }
  }
}

// out (T, H, e) of the tokens of some prompts; their keys and values lie in the cache already.
static void attend_prompts(const Heads& heads, const std::vector<Prompt>& prompts, const bf16* q, int64_t q_stride,
                           bf16* out) {
  static thread_local std::vector<uint8_t> memory;
  static thread_local std::vector<Panels> keys, values;
  const int64_t G = heads.G, Q = heads.H / G;
  keys.clear();
  values.clear();
  int64_t bytes = 0;
  for (const Prompt& prompt : prompts) {
    const int64_t seen = prompt.length - first_seen(heads, prompt);
    for (int64_t g = 0; g < G; g++) {
      keys.push_back({nullptr, 1, seen, heads.d, 16, 0, 0, 0});
      values.push_back({nullptr, 1, heads.e, seen, 16, 0, 0, 0});
      for (auto* panels : {&keys, &values}) bytes += panels->back().panels() * panels->back().panel_bytes();
    }
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
      attend_tile(heads, prompt, g, r0, num_rows, own_keys[c * G + g], own_values[c * G + g], q, q_stride, out);
    });
  }
}

static void attend_prompt(const Heads& heads, const bf16* q, int64_t q_stride, const int64_t* table, bf16* out, int64_t T,
                          int64_t length) {
  attend_prompts(heads, {{0, T, length, table}}, q, q_stride, out);
}

}  // namespace TURNOUT_ISA
