// Keys and values of a prompt's sequence in panels, once for all its queries.
#pragma once
#include <algorithm>
#include <cstring>
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
    for (int64_t i = whole; i < to.cols; i += 2) std::memset(target + i * 64, 0, 64);
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

static inline bool is_endless(bf16 value) { return (value & 0x7f80) == 0x7f80; }

// Puts `num` values beside each other: those of one key, those of the next. Whether one was endless, which is left out.
static inline bool put_pair(const bf16* __restrict one, const bf16* __restrict other, int64_t num, bf16* __restrict target) {
  bf16 found = 0;
  for (int64_t k = 0; k < num; k++) {
    const bool a = is_endless(one[k]), b = is_endless(other[k]);
    target[2 * k] = a ? 0 : one[k];
    target[2 * k + 1] = b ? 0 : other[k];
    found |= a | b;
  }
  return found;
}

// The endless ones of a key's e values, if there are any, in rows of `width`.
static void keep_endless(const bf16* values, int64_t e, int64_t width, int64_t key, EndlessValues& to) {
  if (std::none_of(values, values + e, is_endless)) return;
  to.keys.push_back(key);
  for (int64_t i = 0; i < width; i++) to.rows.push_back(i < e && is_endless(values[i]) ? widen(values[i]) : 0.0f);
}

// Its values the other way round (e, seen), two keys at a time.
static void pack_values(const Heads& heads, const Prompt& prompt, int64_t g, const Panels& to, EndlessValues& endless) {
  const int64_t e = heads.e, base = first_seen(heads, prompt), seen = prompt.length - base;
  const bf16 nothing[32] = {};
  if (e % 32) std::memset(to.panel(0, e / 32), 0, to.panel_bytes());
  for (int64_t j = 0; j < to.cols; j += 2) {
    const bf16* one = j < seen ? value_of(heads, prompt.table, base + j, g) : nullptr;
    const bf16* other = j + 1 < seen ? value_of(heads, prompt.table, base + j + 1, g) : nullptr;
    bool found = false;
    for (int64_t i = 0; i < e; i += 32) {
      bf16* target = reinterpret_cast<bf16*>(to.panel(0, i / 32) + j / 2 * 128);
      const bf16 *a = one ? one + i : nothing, *b = other ? other + i : nothing;
      found |= i + 32 <= e ? put_pair(a, b, 32, target) : put_pair(a, b, e - i, target);
    }
    if (!found) continue;
    keep_endless(one, e, to.panels() * 32, base + j, endless);
    if (other) keep_endless(other, e, to.panels() * 32, base + j + 1, endless);
  }
}

// What a key-value head of a prompt attends with, and where its queries read it.
struct PromptHead {
  Panels keys, values;
  EndlessValues endless;
};

// Without memory yet. Tiles read whole chunks of 64 bytes.
static void shape_head(const Heads& heads, const Prompt& prompt, PromptHead& head) {
  const int64_t seen = prompt.length - first_seen(heads, prompt), whole = kTiles ? 32 : 1;
  head.keys = {nullptr, 1, seen, ceil_div(heads.d, whole) * whole, 16, 0, 0, 0};
  head.values = {nullptr, 1, heads.e, ceil_div(seen, whole) * whole, 16, 0, 0, 0};
  head.endless.clear();
}

}  // namespace TURNOUT_ISA
