// The product of a router: each token's logits over the experts, of rows in float32 or in bfloat16.
#pragma once
#include <algorithm>

#include "panels.h"
#include "plan.h"
#include "pool.h"
#include "vec16.h"

namespace TURNOUT_ISA {

using turnout::Gate;
using turnout::Pool;

// Experts and tokens of a block, whose sums leave room in the registers for what they multiply.
#if defined(__AVX512F__)
constexpr int kRouterBlock = 4;
#else
constexpr int kRouterBlock = 2;
#endif

// The last columns of a row, and nought after them.
template <class Row>
struct Rest {
  Row values[32] = {};
  Rest(const Row* row, int64_t num) { std::memcpy(values, row, static_cast<size_t>(num) * sizeof(Row)); }
};

// sums[r * N + n] = row r · token n, each one's side by side. Each sum goes through the columns, and then through the
// lanes, in the same order whatever R and N are and however the row is stored: a token's logits do not hang on its company.
// While it reads these rows it fetches the bytes `ahead` of them.
template <int R, int N, class Row>
TURNOUT_INLINE static inline void router_block(const Row* rows, const bf16* tokens, int64_t D, int64_t ahead, float* sums) {
  // Four at least, for they are summed by fours.
  constexpr int kSums = std::max(4, R * N);
  F16 acc[kSums];
  each<kSums>([&](auto i) TURNOUT_INLINE { acc[i] = zero_f(); });
  auto add_columns = [&](const auto& row_at, const auto& token_at) TURNOUT_INLINE {
    F16 even[R], odd[R];
    each<R>([&](auto r) TURNOUT_INLINE { load_apart(row_at(r), even[r], odd[r]); });
    each<N>([&](auto n) TURNOUT_INLINE {
      F16 x_even, x_odd;
      load_apart(token_at(n), x_even, x_odd);
      each<R>([&](auto r) TURNOUT_INLINE { acc[r * N + n] = fma(acc[r * N + n], even[r], x_even); });
      each<R>([&](auto r) TURNOUT_INLINE { acc[r * N + n] = fma(acc[r * N + n], odd[r], x_odd); });
    });
  };
  int64_t d = 0;
  for (; d + 32 <= D; d += 32)
    add_columns(
        [&](int r) TURNOUT_INLINE {
          const Row* row = rows + r * D + d;
          for (size_t byte = 0; byte < 32 * sizeof(Row) && ahead; byte += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(rows + R * d + r * 32) + ahead + byte, 0, 3);
          return row;
        },
        [&](int n) TURNOUT_INLINE { return tokens + n * D + d; });
  if (d < D) {
    // One at a time: they need no registers of the others.
    each<R>([&](auto r) TURNOUT_INLINE {
      const Rest<Row> row(rows + r * D + d, D - d);
      F16 even, odd;
      load_apart(row.values, even, odd);
      each<N>([&](auto n) TURNOUT_INLINE {
        const Rest<bf16> token(tokens + n * D + d, D - d);
        F16 x_even, x_odd;
        load_apart(token.values, x_even, x_odd);
        acc[r * N + n] = fma(fma(acc[r * N + n], even, x_even), odd, x_odd);
      });
    });
  }
  alignas(16) float all[(kSums + 3) / 4 * 4];
  each<kSums / 4>([&](auto i) TURNOUT_INLINE { sums_of_four(acc + 4 * i, all + 4 * i); });
  std::copy(all, all + R * N, sums);
}

// Logits of experts [e0, e1) for tokens [t0, t1).
template <class Row>
static void router_part(const Gate& gate, const Row* rows, const bf16* x, float* logits, int64_t e0, int64_t e1, int64_t t0,
                        int64_t t1, int64_t E, int64_t D) {
  constexpr int B = kRouterBlock, kAhead = 8;
  float sums[B * B];
  auto block = [&](auto num_rows, auto num_tokens, int64_t e, int64_t t) TURNOUT_INLINE {
    constexpr int R = num_rows, N = num_tokens;
    // Rows that were read for other tokens are near already; one row of float32 after another is what processors see coming.
    const bool fetches = t == t0 && e + kAhead < E && (R > 1 || sizeof(Row) == sizeof(bf16));
    const int64_t ahead = fetches ? kAhead * D * static_cast<int64_t>(sizeof(Row)) : 0;
    router_block<R, N>(rows + e * D, x + t * D, D, ahead, sums);
    for (int r = 0; r < R; r++)
      for (int n = 0; n < N; n++) {
        const float logit = gate.bias ? sums[r * N + n] + gate.bias[e + r] : sums[r * N + n];
        logits[(t + n) * E + e + r] = gate.temperature == 1.0f ? logit : logit / gate.temperature;
      }
  };
  auto rows_of_block = [&](auto num_rows, int64_t e) TURNOUT_INLINE {
    int64_t t = t0;
    for (; t + B <= t1; t += B) block(num_rows, std::integral_constant<int, B>(), e, t);
    for (; t < t1; t++) block(num_rows, std::integral_constant<int, 1>(), e, t);
  };
  int64_t e = e0;
  // For a single token it takes longer to bring the rows than to multiply them, and they come quicker in their own order.
  for (; t1 - t0 > 1 && e + B <= e1; e += B) rows_of_block(std::integral_constant<int, B>(), e);
  for (; e < e1; e++) rows_of_block(std::integral_constant<int, 1>(), e);
}

// logits (T, E) of one of a gate's maps, (E, D), its bias and the temperature with it.
static void router_logits(const Gate& gate, const void* map, const bf16* x, float* logits, int64_t T, int64_t E, int64_t D) {
  // A unit is some microseconds; what is no more in all is not worth a hand-over.
  constexpr int64_t kExperts = 8, kTokens = 32, kShared = 1 << 18;
  const int64_t of_tokens = ceil_div(E, kExperts);
  auto work = [&](int64_t unit) {
    const int64_t e = unit % of_tokens * kExperts, t = unit / of_tokens * kTokens;
    const int64_t e1 = std::min(E, e + kExperts), t1 = std::min(T, t + kTokens);
    if (gate.narrow) router_part(gate, static_cast<const bf16*>(map), x, logits, e, e1, t, t1, E, D);
    else router_part(gate, static_cast<const float*>(map), x, logits, e, e1, t, t1, E, D);
  };
  const int64_t units = of_tokens * ceil_div(T, kTokens);
  if (T * E * D >= kShared) return Pool::instance().run(units, work);
  for (int64_t unit = 0; unit < units; unit++) work(unit);
}

}  // namespace TURNOUT_ISA
