// Attention of several new tokens of one sequence: keys and values in panels, as many queries at a time as a product takes.
//
// Scores are products of queries with panels of keys, outputs products of shares with panels of values; a share is the
// exponential of a score, rounded to bfloat16, and sums of shares stay in float32.
#pragma once
#include <algorithm>
#include <vector>

#include "attention_in_tiles.h"
#include "attention_in_vectors.h"
#include "prompt_panels.h"

namespace TURNOUT_ISA {

// Rows [first, first + num) of one key-value head of a prompt; row r is query head r % Q of the prompt's token r / Q.
struct QueryBlock {
  int64_t prompt, g, first, num;
  int64_t keys;  // that its last row sees
};

// Tiles that go over keys together: as many as keep their sums near, for each block of keys is then read once for all.
static inline int64_t tiles_of_block(int64_t width) {
  return std::max<int64_t>(1, std::min<int64_t>(4, 16384 / (kQueryRows * width * 4)));
}

struct PromptScratch {
  std::vector<QueryTile> tiles;
  Large<uint8_t> queries;
  Large<float> sums;
};

// Rows [r0, r0 + num), of which nothing has been attended to.
static void begin_tile(const Heads& heads, const Prompt& prompt, int64_t g, int64_t r0, const bf16* q, int64_t q_stride,
                       QueryTile& tile) {
  const int64_t Q = heads.H / heads.G, d = heads.d;
  int64_t t = r0 / Q, of_group = r0 % Q;
  for (int n = 0; n < tile.num; n++, of_group++) {
    if (of_group == Q) t++, of_group = 0;
    const int64_t h = g * Q + of_group;
    tile.ends[n] = prompt.length - prompt.num + t + 1;
    tile.firsts[n] = heads.window ? std::max<int64_t>(0, tile.ends[n] - heads.window) : 0;
    const float sink = heads.sinks ? sink_of(heads, h) : 0.0f;
    begin_row(tile, n, q + (prompt.first + t) * q_stride + h * d, d, heads.sinks ? &sink : nullptr);
  }
  for (int n = tile.num; n < kQueryRows; n++) tile.firsts[n] = tile.ends[n] = 0, tile.bests[n] = 0.0f;
}

static void end_tile(const Heads& heads, const Prompt& prompt, int64_t g, int64_t r0, int64_t width, const QueryTile& tile,
                     bf16* out) {
  const int64_t Q = heads.H / heads.G, e = heads.e, whole = e / 32 * 32;
  int64_t t = r0 / Q, of_group = r0 % Q;
  for (int n = 0; n < tile.num; n++, of_group++) {
    if (of_group == Q) t++, of_group = 0;
    const float factor = 1.0f / total_of(tile, n), *sums = tile.sums + n * width;
    bf16* target = out + ((prompt.first + t) * heads.H + g * Q + of_group) * e;
    const F16 by = splat_f(factor);
    for (int64_t i = 0; i < whole; i += 32) store_narrow(target + i, mul(load_f(sums + i), by), mul(load_f(sums + i + 16), by));
    for (int64_t i = whole; i < e; i++) target[i] = narrow(sums[i] * factor);
  }
}

static void attend_query_block(const Heads& heads, const Prompt& prompt, const QueryBlock& own, const PromptHead& head,
                               const bf16* q, int64_t q_stride, bf16* out) {
  static thread_local PromptScratch scratch;
  const TilesOfUnit tiles_of_unit;
  const Panels &keys = head.keys, &values = head.values;
  const int64_t count = ceil_div(own.num, kQueryRows), width = values.panels() * 32, words = keys.steps() * 4;
  // Tiles of the processor are read whole, and the fewer, the better; vectors go best as many to one product as to another.
  const auto row = [&](int64_t i) { return kTiles ? std::min(own.num, i * kQueryRows) : own.num * i / count; };
  const int64_t room = kTiles ? count * kQueryRows : own.num;
  scratch.tiles.resize(count);
  scratch.queries.assign(room * words, 0);
  scratch.sums.assign(room * width, 0.0f);
  for (int64_t i = 0; i < count; i++) {
    QueryTile& tile = scratch.tiles[i];
    tile.num = static_cast<int>(row(i + 1) - row(i));
    tile.queries = scratch.queries.data() + row(i) * words;
    tile.sums = scratch.sums.data() + row(i) * width;
    begin_tile(heads, prompt, own.g, own.first + row(i), q, q_stride, tile);
  }
  const int64_t base = first_seen(heads, prompt), end = scratch.tiles.back().end();
  for (int64_t first = scratch.tiles[0].first() / 32 * 32; first < end;) {
    const int64_t next = std::min(end, (first / kKeyBlock + 1) * kKeyBlock);
    for (QueryTile& tile : scratch.tiles) {
      const int64_t num = std::min(next, tile.end()) - first;
      if (num <= 0 || tile.first() >= next) continue;
      attend_block({first, num, keys.panel(0, (first - base) / 32), values.memory + (first - base) / 2 * 128, keys.steps(),
                    keys.panel_bytes(), values.panels(), values.panel_bytes(), &head.endless},
                   tile, heads.scale * kLog2e);
    }
    first = next;
  }
  for (int64_t i = 0; i < count; i++) end_tile(heads, prompt, own.g, own.first + row(i), width, scratch.tiles[i], out);
}

// All query blocks of some prompts, those that see the most keys first, so that nobody waits for them.
static void query_blocks_of(const Heads& heads, const std::vector<Prompt>& prompts, std::vector<QueryBlock>& blocks) {
  // Rows of a tile of the processor go together.
  constexpr int64_t kTogether = kTiles ? 16 : 1;
  const int64_t Q = heads.H / heads.G, most = kQueryRows * tiles_of_block(ceil_div(heads.e, 32) * 32);
  blocks.clear();
  for (int64_t c = 0; c < static_cast<int64_t>(prompts.size()); c++) {
    const int64_t rows = prompts[c].num * Q, count = ceil_div(rows, most), lots = ceil_div(rows, kTogether);
    for (int64_t i = 0; i < count; i++) {
      const int64_t first = lots * i / count * kTogether, end = std::min(rows, lots * (i + 1) / count * kTogether);
      for (int64_t g = 0; g < heads.G; g++)
        blocks.push_back({c, g, first, end - first, prompts[c].length - prompts[c].num + (end - 1) / Q + 1});
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(), [](const QueryBlock& a, const QueryBlock& b) { return a.keys > b.keys; });
}

// The key-value heads of some prompts, with room for their panels.
static void shape_heads(const Heads& heads, const std::vector<Prompt>& prompts, std::vector<PromptHead>& own, Large<uint8_t>& memory) {
  const int64_t G = heads.G, num = static_cast<int64_t>(prompts.size()) * G;
  own.resize(num);
  int64_t bytes = 0;
  for (int64_t i = 0; i < num; i++) {
    shape_head(heads, prompts[i / G], own[i]);
    for (const Panels* panels : {&own[i].keys, &own[i].values}) bytes += panels->panels() * panels->panel_bytes();
  }
  memory.resize(bytes);
  uint8_t* place = memory.data();
  for (PromptHead& head : own)
    for (Panels* panels : {&head.keys, &head.values}) {
      panels->memory = place;
      place += panels->panels() * panels->panel_bytes();
    }
}

// out (T, H, e) of the tokens of some prompts; their keys and values lie in the cache already.
static void attend_prompts(const Heads& heads, const std::vector<Prompt>& prompts, const bf16* q, int64_t q_stride,
                           bf16* out) {
  static thread_local Large<uint8_t> memory;
  static thread_local std::vector<PromptHead> heads_of_thread;
  static thread_local std::vector<QueryBlock> blocks;
  const int64_t G = heads.G;
  shape_heads(heads, prompts, heads_of_thread, memory);
  query_blocks_of(heads, prompts, blocks);
  // Named for the helpers: what is local to a thread is theirs, not the caller's.
  PromptHead* own_heads = heads_of_thread.data();
  const QueryBlock* own_blocks = blocks.data();
  Pool::instance().run(2 * static_cast<int64_t>(heads_of_thread.size()), [&](int64_t unit) {
    const int64_t i = unit / 2;
    if (unit % 2)
      pack_values(heads, prompts[i / G], i % G, own_heads[i].values, own_heads[i].endless);
    else
      pack_keys(heads, prompts[i / G], i % G, own_heads[i].keys);
  });
  Pool::instance().run(static_cast<int64_t>(blocks.size()), [&](int64_t unit) {
    const QueryBlock& own = own_blocks[unit];
    attend_query_block(heads, prompts[own.prompt], own, own_heads[own.prompt * G + own.g], q, q_stride, out);
  });
}

static void attend_prompt(const Heads& heads, const bf16* q, int64_t q_stride, const int64_t* table, bf16* out, int64_t T,
                          int64_t length) {
  attend_prompts(heads, {{0, T, length, table}}, q, q_stride, out);
}

}  // namespace TURNOUT_ISA
