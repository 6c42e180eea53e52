// What the machine can do at most: bytes read from memory, and products in registers. For shares of the roofline.
#pragma once
#include <atomic>

#include "multiply.h"
#include "pool.h"

namespace TURNOUT_ISA {

using turnout::Pool;

typedef int64_t Words __attribute__((vector_size(64)));

// Reads every byte once, shared among the threads; the sum is returned so that nothing can be left out.
static int64_t read_memory(const uint8_t* memory, int64_t bytes) {
  constexpr int64_t kUnit = 1 << 20;
  std::atomic<int64_t> total{0};
  Pool::instance().run((bytes + kUnit - 1) / kUnit, [&](int64_t unit) {
    const uint8_t* first = memory + unit * kUnit;
    const int64_t steps = std::min(kUnit, bytes - unit * kUnit) / 256;
    Words sums[4] = {};
    for (int64_t step = 0; step < steps; step++)
      each<4>([&](auto i) TURNOUT_INLINE {
        Words words;
        std::memcpy(&words, first + step * 256 + i * 64, 64);
        __builtin_prefetch(first + step * 256 + i * 64 + kAheadBytes);
        sums[i] ^= words;
      });
    const Words all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    int64_t sum = 0;
    for (int i = 0; i < 8; i++) sum ^= all[i];
    total.fetch_xor(sum);
  });
  return total.load();
}

// `rounds` times 24 independent products of 64 bytes; the sums start apart, for equal ones would be computed once.
static float multiply_bf16_in_registers(const uint8_t* volatile source, int64_t rounds) {
  F16 sums[24], sum = zero_f();
  each<24>([&](auto n) TURNOUT_INLINE { sums[n] = splat_f(static_cast<float>(n)); });
  for (int64_t round = 0; round < rounds; round++) {
    const I16 w = load_words(source);
    each<24>([&](auto n) TURNOUT_INLINE { sums[n] = dot_bf16(sums[n], w, 0x3f803f80u); });
  }
  each<24>([&](auto n) TURNOUT_INLINE { sum = fma(sum, sums[n], splat_f(1.0f)); });
  float out[16];
  store_f(out, sum);
  return out[0];
}

static float multiply_codes_in_registers(const uint8_t* volatile source, int64_t rounds) {
  I16 sums[24];
  F16 sum = zero_f();
  each<24>([&](auto n) TURNOUT_INLINE { sums[n] = splat_i(n); });
  for (int64_t round = 0; round < rounds; round++) {
    const I16 w = load_words(source);
    each<24>([&](auto n) TURNOUT_INLINE { sums[n] = dot_bytes(sums[n], w, 0x01010101u); });
  }
  each<24>([&](auto n) TURNOUT_INLINE { sum = fma(sum, to_float(sums[n]), splat_f(1.0f)); });
  float out[16];
  store_f(out, sum);
  return out[0];
}

// The same for each of `units`, shared among the threads.
static float multiply_registers(int of_codes, int64_t units, int64_t rounds) {
  std::atomic<int32_t> total{0};
  Pool::instance().run(units, [&](int64_t) {
    uint8_t words[64];
    for (int i = 0; i < 64; i++) words[i] = static_cast<uint8_t>(i);
    total.fetch_add((of_codes ? multiply_codes_in_registers : multiply_bf16_in_registers)(words, rounds) > 0.0f);
  });
  return static_cast<float>(total.load());
}

}  // namespace TURNOUT_ISA
