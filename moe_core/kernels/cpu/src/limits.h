// What the machine can do at most: bytes read from memory, and products in registers. For shares of the roofline.
#pragma once
#include <atomic>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Written out for the assembler: compilers keep so many sums in memory, and loops in which they do find no limit.
#if defined(__x86_64__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define TURNOUT_8_SUMS(f, a, b, c, d, e, g, h, i) f(a) f(b) f(c) f(d) f(e) f(g) f(h) f(i)
#define TURNOUT_ZERO(n) "vpxord %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n\t"
#define TURNOUT_DOT(n) "vpdpbusd %%zmm25, %%zmm24, %%zmm" #n "\n\t"
#define TURNOUT_24_SUMS(f)                          \
  TURNOUT_8_SUMS(f, 0, 1, 2, 3, 4, 5, 6, 7)         \
  TURNOUT_8_SUMS(f, 8, 9, 10, 11, 12, 13, 14, 15)   \
  TURNOUT_8_SUMS(f, 16, 17, 18, 19, 20, 21, 22, 23)
static float multiply_codes_in_registers(const uint8_t* source, int64_t rounds) {
  int32_t out[16];
  asm volatile(
      "vmovdqu64 (%[from]), %%zmm24\n\t"
      "vmovdqu64 (%[from]), %%zmm25\n\t" TURNOUT_24_SUMS(TURNOUT_ZERO)
      ".p2align 5\n"
      "1:\n\t" TURNOUT_24_SUMS(TURNOUT_DOT)
      "decq %[left]\n\t"
      "jnz 1b\n\t"
      "vmovdqu64 %%zmm0, (%[to])\n\t"
      : [left] "+r"(rounds)
      : [from] "r"(source), [to] "r"(out)
      : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24",
        "xmm25");
  return static_cast<float>(out[0]);
}
#else
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
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__AVX512VNNI__)
// Four tiles of sums, four products of 16 x 64 bytes a round. The first use of a tile must be asked of the kernel. What the thread
// had configured comes back, for torch remembers what it has; where that was nothing, it lets the tiles go.
static float multiply_tiles(bool of_codes, const uint8_t* source, int64_t rounds) {
  constexpr long kArchPrctl = 158, kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(kArchPrctl, kRequestPermission, kTileData) != 0) return 0.0f;
  alignas(64) uint8_t before[64], shape[64] = {1}, tile[1024];
  for (int i = 0; i < 8; i++) {
    shape[16 + 2 * i] = 64;
    shape[48 + i] = 16;
  }
  for (int i = 0; i < 1024; i++) tile[i] = source[i % 64];
#define TURNOUT_TILES(product)                                                            \
  asm volatile(                                                                           \
      "sttilecfg (%[before])\n\tldtilecfg (%[shape])\n\t"                                 \
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"      \
      "tileloadd (%[tile],%[stride],1), %%tmm4\n\ttileloadd (%[tile],%[stride],1), %%tmm5\n\t" \
      "tileloadd (%[tile],%[stride],1), %%tmm6\n\ttileloadd (%[tile],%[stride],1), %%tmm7\n"  \
      "1:\n\t" product " %%tmm6, %%tmm4, %%tmm0\n\t" product " %%tmm7, %%tmm4, %%tmm1\n\t"   \
      product " %%tmm6, %%tmm5, %%tmm2\n\t" product " %%tmm7, %%tmm5, %%tmm3\n\t"            \
      "decq %[left]\n\t"                                                                  \
      "jnz 1b\n\t"                                                                        \
      "tilestored %%tmm0, (%[tile],%[stride],1)\n\t"                                      \
      "ldtilecfg (%[before])\n\t"                                                         \
      : [left] "+r"(rounds)                                                               \
      : [before] "r"(before), [shape] "r"(shape), [tile] "r"(tile), [stride] "r"(int64_t{64}) \
      : "memory", "cc")
  if (of_codes)
    TURNOUT_TILES("tdpbssd");
  else
    TURNOUT_TILES("tdpbf16ps");
#undef TURNOUT_TILES
  return 1.0f;
}
#else
static float multiply_tiles(bool, const uint8_t*, int64_t) { return 0.0f; }
#endif

// Each of `units`, shared among the threads: products of bfloat16 (0) or of codes (1) in vectors, or in tiles (2 and 3).
// 0 when a unit could not be computed.
static float multiply_registers(int kind, int64_t units, int64_t rounds) {
  std::atomic<int32_t> total{0};
  Pool::instance().run(units, [&](int64_t) {
    uint8_t words[64];
    for (int i = 0; i < 64; i++) words[i] = static_cast<uint8_t>(i);
    const float found = kind >= 2   ? multiply_tiles(kind == 3, words, rounds)
                        : kind == 1 ? multiply_codes_in_registers(words, rounds)
                                    : multiply_bf16_in_registers(words, rounds);
    total.fetch_add(found > 0.0f);
  });
  return total.load() == units ? 1.0f : 0.0f;
}

}  // namespace TURNOUT_ISA
