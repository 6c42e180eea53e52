// Loops whose every turn is code of its own, so that what they work on stays in registers.
#pragma once
#include <type_traits>
#include <utility>

namespace TURNOUT_ISA {

#define TURNOUT_INLINE __attribute__((always_inline))

// Calls step(0) to step(N - 1), each number a type of its own: with plain loops gcc 12 keeps the sums of codes in memory.
template <class Step, int... I>
TURNOUT_INLINE static inline void each_of(const Step& step, std::integer_sequence<int, I...>) {
  (step(std::integral_constant<int, I>()), ...);
}
template <int N, class Step>
TURNOUT_INLINE static inline void each(const Step& step) {
  each_of(step, std::make_integer_sequence<int, N>());
}

}  // namespace TURNOUT_ISA
