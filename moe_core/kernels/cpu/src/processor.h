// Which instruction sets this processor has and this system keeps the registers of, by CPUID and XCR0. Not by
// __builtin_cpu_supports: in libraries that Zig links it says no to everything.
#pragma once
#include <cpuid.h>

#include <cstdint>
#include <initializer_list>

namespace turnout {

struct Processor {
  bool avx2 = false, avx512 = false, vnni = false, bf16 = false, amx = false;

  Processor() {
    uint32_t eax, ebx, ecx, edx, deepest;
    const auto has = [](uint32_t word, std::initializer_list<int> bits) {
      for (int bit : bits)
        if (!(word >> bit & 1)) return false;
      return true;
    };
    // FMA, XGETBV and that the system uses it, AVX, F16C.
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, {12, 26, 27, 28, 29})) return;
    const uint32_t kept = kept_registers();
    if (!__get_cpuid_count(7, 0, &deepest, &ebx, &ecx, &edx)) return;
    avx2 = has(kept, {1, 2}) && has(ebx, {5});
    // F, DQ, BW, VL; the masks and both upper parts of the vectors.
    avx512 = avx2 && has(kept, {5, 6, 7}) && has(ebx, {16, 17, 30, 31});
    vnni = avx512 && has(ecx, {11});
    // Tiles, their products of bfloat16 and of codes; their configuration and their data.
    const bool tiles = has(kept, {17, 18}) && has(edx, {22, 24, 25});
    bf16 = vnni && deepest >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && has(eax, {5});
    amx = bf16 && tiles;
  }

 private:
  static uint32_t kept_registers() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
  }
};

}  // namespace turnout
