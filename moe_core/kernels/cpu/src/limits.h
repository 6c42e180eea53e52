// What the machine can do at most: bytes read from memory, and products in registers. For shares of the roofline.
#pragma once
#include <atomic>

#include "multiply.h"
#include "pool.h"

namespace TURNOUT_ISA {

using turnout::Pool;

// Reads every byte once, shared among the threads; the sum is returned so that nothing can be left out.
static int64_t read_memory(const uint8_t* memory, int64_t bytes) {
  constexpr int64_t kUnit = 1 << 20;
  std::atomic<int64_t> total{0};
  Pool::instance().run((bytes + kUnit - 1) / kUnit, [&](int64_t unit) {
    const uint8_t* first = memory + unit * kUnit;
    const int64_t steps = std::min(kUnit, bytes - unit * kUnit) / 256;
    int64_t sums[32] = {};
    for (int64_t step = 0; step < steps; step++) {
      int64_t words[32];
      std::memcpy(words, first + step * 256, 256);
      __builtin_prefetch(first + step * 256 + 4096);
      __builtin_prefetch(first + step * 256 + 4160);
      __builtin_prefetch(first + step * 256 + 4224);
      __builtin_prefetch(first + step * 256 + 4288);
      for (int i = 0; i < 32; i++) sums[i] ^= words[i];
    }
    int64_t sum = 0;
    for (int64_t one : sums) sum ^= one;
    total.fetch_xor(sum);
  });
  return total.load();
}

// `rounds` times 24 independent products of 64 bytes for each of `units`: of bfloat16, or of 8-bit codes.
static float multiply_registers(int of_codes, int64_t units, int64_t rounds) {
  std::atomic<int32_t> total{0};
  Pool::instance().run(units, [&](int64_t) {
    uint8_t words[64];
    for (int i = 0; i < 64; i++) words[i] = static_cast<uint8_t>(i);
    float out[16];
    // Read anew each round, so that the compiler cannot work ahead.
    const uint8_t* volatile source = words;
    F16 sums[24];
    I16 codes[24];
    // All different: equal sums would be computed once.
    each<24>([&](auto n) TURNOUT_INLINE {
      sums[n] = splat_f(static_cast<float>(n));
      codes[n] = splat_i(n);
    });
    for (int64_t round = 0; round < rounds; round++) {
      const I16 w = load_words(source);
      if (of_codes)
        each<24>([&](auto n) TURNOUT_INLINE { codes[n] = dot_bytes(codes[n], w, 0x01010101u); });
      else
        each<24>([&](auto n) TURNOUT_INLINE { sums[n] = dot_bf16(sums[n], w, 0x3f803f80u); });
    }
    F16 sum = zero_f();
    each<24>([&](auto n) TURNOUT_INLINE {
      sum = fma(sum, to_float(codes[n]), splat_f(1.0f));
      sum = fma(sum, sums[n], splat_f(1.0f));
    });
    store_f(out, sum);
    total.fetch_add(out[0] > 0.0f);
  });
  return static_cast<float>(total.load());
}

}  // namespace TURNOUT_ISA
