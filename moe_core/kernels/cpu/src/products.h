// Products of bfloat16 matrices in tiles (Intel AMX) with sums in float32, for what lies in the second cache already.
//
// Thirty-two columns of b are a panel as in tiles.h, packed when their turn comes and used for all rows of a. Rows of a are read
// as they lie. Sizes are whole times 32.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "tiles.h"
#include "training.h"

namespace TURNOUT_ISA {

#if defined(TURNOUT_TILE_ZERO)

// Word i holds number i of either row.
static inline void pair_rows(const bf16* __restrict low, const bf16* __restrict high, uint8_t* __restrict out) {
  uint32_t words[16];
  for (int i = 0; i < 16; i++) words[i] = low[i] | static_cast<uint32_t>(high[i]) << 16;
  std::memcpy(out, words, 64);
}

// Thirty-two columns from `column` of b, which is (K, N), or (N, K) where it is transposed.
static void pack_panel(const bf16* b, bool is_transposed, int64_t column, int64_t N, int64_t K, uint8_t* panel) {
  if (is_transposed) {
    const uint8_t* rows[16];
    for (int64_t k = 0; k < K; k += 32)
      for (int half = 0; half < 2; half++) {
        for (int i = 0; i < 16; i++) rows[i] = reinterpret_cast<const uint8_t*>(b + (column + half * 16 + i) * K + k);
        transpose_words(rows, panel + k * 64 + half * 64, 128);
      }
    return;
  }
  for (int64_t k = 0; k < K; k += 2)
    for (int half = 0; half < 2; half++) {
      const bf16* low = b + k * N + column + half * 16;
      pair_rows(low, low + N, panel + k * 64 + half * 64);
    }
}

// Rows of (M, K) from (K, M).
static void turn_over(const bf16* a, int64_t M, int64_t K, bf16* out) {
  alignas(64) uint8_t pairs[16 * 64];
  const uint8_t* rows[16];
  for (int i = 0; i < 16; i++) rows[i] = pairs + i * 64;
  for (int64_t m = 0; m < M; m += 16)
    for (int64_t k = 0; k < K; k += 32) {
      for (int i = 0; i < 16; i++) pair_rows(a + (k + 2 * i) * M + m, a + (k + 2 * i + 1) * M + m, pairs + i * 64);
      transpose_words(rows, reinterpret_cast<uint8_t*>(out + m * K + k), K * 2);
    }
}

// What becomes of 32 x 32 sums: written in either type, or added to what is there. Rows of `out` are N apart.
static inline void keep(const float* sums, bf16* out) { store_narrow(out, load_f(sums), load_f(sums + 16)); }
static inline void keep(const float* sums, float* out) {
  for (int half = 0; half < 32; half += 16) store_f(out + half, load_f(sums + half));
}
struct Total {
  float number;
};
static inline void keep(const float* sums, Total* out) {
  float* to = &out->number;
  for (int half = 0; half < 32; half += 16) store_f(to + half, add(load_f(to + half), load_f(sums + half)));
}

template <class Out>
static void rows_by_panel(const bf16* a, const uint8_t* panel, Out* out, int64_t M, int64_t N, int64_t K) {
  alignas(64) float sums[32 * 32];
  for (int64_t m = 0; m < M; m += 32) {
    const uint8_t* rows = reinterpret_cast<const uint8_t*>(a + m * K);
    zero_sums();
    for (int64_t k = 0; k < K; k += 32) add_bf16(rows + k * 2, K * 2, panel + k * 64, true);
    store_sums(sums, true);
    asm volatile("" ::: "memory");
    for (int row = 0; row < 32; row++) keep(sums + row * 32, out + (m + row) * N);
  }
}

// Room for the operands of one product, kept from one to the next.
struct ProductSpace {
  std::vector<uint8_t> panel;
  std::vector<bf16> turned;
};

// out (M, N) from a (M, K) · b (K, N); transposed ones lie as (K, M) and (N, K).
template <bool kTurnA, bool kTurnB, class Out>
static void product(const bf16* a, const bf16* b, Out* out, int64_t M, int64_t N, int64_t K, ProductSpace& space) {
  take_tiles();
  if (kTurnA) {
    if (space.turned.size() < static_cast<size_t>(M * K)) space.turned.resize(M * K);
    turn_over(a, M, K, space.turned.data());
    a = space.turned.data();
  }
  if (space.panel.size() < static_cast<size_t>(K * 64)) space.panel.resize(K * 64);
  for (int64_t column = 0; column < N; column += 32) {
    pack_panel(b, kTurnB, column, N, K, space.panel.data());
    rows_by_panel(a, space.panel.data(), out + column, M, N, K);
  }
}
#endif

}  // namespace TURNOUT_ISA
