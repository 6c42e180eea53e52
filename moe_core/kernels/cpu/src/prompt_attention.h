// Attention of several new tokens of one sequence: keys and values in panels, twelve queries at a time.
//
// Scores are products of queries with panels of keys, outputs products of shares with panels of values; a share is the
// exponential of a score, rounded to bfloat16, and sums of shares stay in float32.
#pragma once
#include <algorithm>
#include <vector>

#include "attention.h"
#include "attention_tile.h"
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

// One key-value head's keys (seen, d), sixteen of them at a time.
static void pack_keys(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to) {
  const int64_t d = heads.d, base = first_seen(heads, prompt), seen = prompt.length - base, whole = d / 32 * 32;
  if (seen % 32) std::memset(to.panel(0, seen / 32), 0, to.panel_bytes());
  for (int64_t j = 0; j < seen; j += 16) {
    uint8_t* target = to.panel(0, j / 32) + j % 32 * 4;
    const int num = static_cast<int>(std::min<int64_t>(16, seen - j));
    const uint8_t* rows[16];
    for (int n = 0; n < num; n++) rows[n] = reinterpret_cast<const uint8_t*>(key_of(heads, prompt.table, base + j + n, g));
    int64_t i = 0;
    for (; num == 16 && i < whole; i += 32) {
      const uint8_t* parts[16];
      for (int n = 0; n < 16; n++) parts[n] = rows[n] + i * 2;
      transpose_words(parts, target + i * 64, 128);
    }
    for (; i < d; i += 2)
      for (int n = 0; n < num; n++) {
        uint32_t word = 0;
        std::memcpy(&word, rows[n] + i * 2, i + 1 < d ? 4 : 2);
        std::memcpy(target + i * 64 + n * 4, &word, 4);
      }
  }
}

// Its values the other way round (e, seen), two keys at a time.
static void pack_values(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to) {
  const int64_t e = heads.e, base = first_seen(heads, prompt), seen = prompt.length - base;
  const bf16 nothing[32] = {};
  if (e % 32) std::memset(to.panel(0, e / 32), 0, to.panel_bytes());
  for (int64_t j = 0; j < seen; j += 2) {
    const bf16 *one = value_of(heads, prompt.table, base + j, g), *other = nothing;
    if (j + 1 < seen) other = value_of(heads, prompt.table, base + j + 1, g);
    for (int64_t i = 0; i < e; i += 32) {
      bf16* __restrict target = reinterpret_cast<bf16*>(to.panel(0, i / 32) + j / 2 * 128);
      const bf16 *a = one + i, *b = other == nothing ? nothing : other + i;
      if (i + 32 <= e)
        for (int64_t k = 0; k < 32; k++) target[2 * k] = a[k], target[2 * k + 1] = b[k];
      else
        for (int64_t k = 0; k < e - i; k++) target[2 * k] = a[k], target[2 * k + 1] = b[k];
    }
  }
}

// Rows [first, first + num) of one key-value head of a prompt; row r is query head r % Q of the prompt's token r / Q.
struct QueryBlock {
  int64_t prompt, g, first, num;
  int64_t keys;  // that its last row sees
};

// Tiles that go over keys together: as many as keep their sums near, for each block of keys is then read once for all.
static inline int64_t tiles_of_block(int64_t width) { return std::max<int64_t>(1, std::min<int64_t>(4, 16384 / (kInputs * width * 4))); }

struct PromptScratch {
  std::vector<QueryTile> tiles;
  std::vector<uint8_t> queries;
  std::vector<float> sums;
};

// Rows [r0, r0 + num), of which nothing has been attended to.
static void begin_tile(const Heads& heads, const Prompt& prompt, int64_t g, int64_t r0, int num, const bf16* q,
                       int64_t q_stride, uint8_t* queries, float* sums, QueryTile& tile) {
  const int64_t Q = heads.H / heads.G, d = heads.d;
  tile.num = num;
  tile.queries = queries;
  tile.sums = sums;
  for (int n = 0; n < num; n++) {
    const int64_t t = (r0 + n) / Q, h = g * Q + (r0 + n) % Q;
    tile.ends[n] = prompt.length - prompt.num + t + 1;
    tile.firsts[n] = heads.window ? std::max<int64_t>(0, tile.ends[n] - heads.window) : 0;
    tile.bests[n] = heads.sinks ? sink_of(heads, h) : -std::numeric_limits<float>::infinity();
    tile.totals[n] = heads.sinks ? 1.0f : 0.0f;
    const bf16* query = q + (prompt.first + t) * q_stride + h * d;
    for (int64_t i = 0; i < d; i += 2) std::memcpy(queries + (i / 2 * num + n) * 4, query + i, i + 1 < d ? 4 : 2);
  }
}

static void end_tile(const Heads& heads, const Prompt& prompt, int64_t g, int64_t r0, int64_t width, const QueryTile& tile,
                     bf16* out) {
  const int64_t Q = heads.H / heads.G, e = heads.e;
  for (int n = 0; n < tile.num; n++) {
    const float factor = 1.0f / tile.totals[n];
    bf16* target = out + ((prompt.first + (r0 + n) / Q) * heads.H + g * Q + (r0 + n) % Q) * e;
    for (int64_t i = 0; i < e; i++) target[i] = narrow(tile.sums[n * width + i] * factor);
  }
}

static void attend_query_block(const Heads& heads, const Prompt& prompt, const QueryBlock& own, const Panels& keys,
                               const Panels& values, const bf16* q, int64_t q_stride, bf16* out) {
  static thread_local PromptScratch scratch;
  const int64_t count = ceil_div(own.num, kInputs), width = values.panels() * 32, words = keys.steps() * 4;
  scratch.tiles.resize(count);
  scratch.queries.assign(own.num * words, 0);
  scratch.sums.assign(own.num * width, 0.0f);
  const auto row = [&](int64_t i) { return own.num * i / count; };
  for (int64_t i = 0; i < count; i++)
    begin_tile(heads, prompt, own.g, own.first + row(i), static_cast<int>(row(i + 1) - row(i)), q, q_stride,
               scratch.queries.data() + row(i) * words, scratch.sums.data() + row(i) * width, scratch.tiles[i]);
  const int64_t base = first_seen(heads, prompt), end = scratch.tiles.back().end();
  for (int64_t first = scratch.tiles[0].first() / 32 * 32; first < end;) {
    const int64_t next = std::min(end, (first / kKeyBlock + 1) * kKeyBlock);
    for (QueryTile& tile : scratch.tiles) {
      const int64_t num = std::min(next, tile.end()) - first;
      if (num <= 0 || tile.first() >= next) continue;
      attend_block({first, num, keys.panel(0, (first - base) / 32), values.memory + (first - base) / 2 * 128, keys.steps(),
                    keys.panel_bytes(), values.panels(), values.panel_bytes()},
                   tile, heads.scale * kLog2e);
    }
    first = next;
  }
  for (int64_t i = 0; i < count; i++) end_tile(heads, prompt, own.g, own.first + row(i), width, scratch.tiles[i], out);
}

// All query blocks of some prompts, those that see the most keys first, so that nobody waits for them.
static void query_blocks_of(const Heads& heads, const std::vector<Prompt>& prompts, std::vector<QueryBlock>& blocks) {
  const int64_t Q = heads.H / heads.G, most = kInputs * tiles_of_block(ceil_div(heads.e, 32) * 32);
  blocks.clear();
  for (int64_t c = 0; c < static_cast<int64_t>(prompts.size()); c++) {
    const int64_t rows = prompts[c].num * Q, count = ceil_div(rows, most);
    for (int64_t i = 0; i < count; i++) {
      const int64_t first = rows * i / count, end = rows * (i + 1) / count;
      for (int64_t g = 0; g < heads.G; g++)
        blocks.push_back({c, g, first, end - first, prompts[c].length - prompts[c].num + (end - 1) / Q + 1});
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(), [](const QueryBlock& a, const QueryBlock& b) { return a.keys > b.keys; });
}

// out (T, H, e) of the tokens of some prompts; their keys and values lie in the cache already.
static void attend_prompts(const Heads& heads, const std::vector<Prompt>& prompts, const bf16* q, int64_t q_stride,
                           bf16* out) {
  static thread_local std::vector<uint8_t> memory;
  static thread_local std::vector<Panels> keys, values;
  static thread_local std::vector<QueryBlock> blocks;
  const int64_t G = heads.G;
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
  query_blocks_of(heads, prompts, blocks);
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  const Panels *own_keys = keys.data(), *own_values = values.data();
  const QueryBlock* own_blocks = blocks.data();
  Pool::instance().run(2 * num, [&](int64_t unit) {
    const int64_t i = unit / 2;
    if (unit % 2)
      pack_values(heads, prompts[i / G], i % G, own_values[i]);
    else
      pack_keys(heads, prompts[i / G], i % G, own_keys[i]);
  });
  Pool::instance().run(static_cast<int64_t>(blocks.size()), [&](int64_t unit) {
    const QueryBlock& own = own_blocks[unit];
    const int64_t of_head = own.prompt * G + own.g;
    attend_query_block(heads, prompts[own.prompt], own, own_keys[of_head], own_values[of_head], q, q_stride, out);
  });
}

static void attend_prompt(const Heads& heads, const bf16* q, int64_t q_stride, const int64_t* table, bf16* out, int64_t T,
                          int64_t length) {
  attend_prompts(heads, {{0, T, length, table}}, q, q_stride, out);
}

}  // namespace TURNOUT_ISA
