// Inputs of products with panels: bfloat16 as it is, or eight bits with a scale for each group.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"
#include "panels.h"

namespace TURNOUT_ISA {

using turnout::Panels;

// Rows in the form that panels of one shape multiply; kept between calls, so that memory is asked for once.
struct Inputs {
  int64_t stride = 0;  // bytes of a row
  int64_t groups = 0;
  std::vector<uint8_t> rows;
  std::vector<float> scales;  // (R, groups)
  std::vector<int32_t> sums;  // (R, groups): of the codes, for the weights' zero points

  void resize(int64_t num_rows, const Panels& panels) {
    // Codes are read in whole steps; what lies past the last column is zero.
    stride = panels.steps() * panels.cols_of_step() * (panels.bits == 16 ? 2 : 1);
    groups = panels.groups();
    rows.resize(num_rows * stride);
    scales.resize(num_rows * groups);
    sums.resize(num_rows * groups);
  }
  const uint8_t* row(int64_t r) const { return rows.data() + r * stride; }
};

static inline void put_bf16(Inputs& inputs, int64_t row, const bf16* x, int64_t cols) {
  uint8_t* target = inputs.rows.data() + row * inputs.stride;
  std::memcpy(target, x, cols * 2);
  std::memset(target + cols * 2, 0, inputs.stride - cols * 2);
}

// Rounds halves away from zero; the sum of the codes. Vectorised: the two must not overlap.
static inline int32_t round_to_codes(const float* __restrict x, int8_t* __restrict codes, int64_t size, float factor) {
  int32_t sum = 0;
  for (int64_t i = 0; i < size; i++) {
    const float value = x[i] * factor;
    const int32_t code = static_cast<int32_t>(value + (value < 0.0f ? -0.5f : 0.5f));
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

// Codes from -127 to 127. A group with NaN or infinity gets NaN as its scale, and so makes its whole row NaN.
static inline void put_codes(Inputs& inputs, int64_t row, const float* x, int64_t cols, int64_t group) {
  int8_t* target = reinterpret_cast<int8_t*>(inputs.rows.data() + row * inputs.stride);
  for (int64_t g = 0; g < inputs.groups; g++) {
    const int64_t first = g * group, end = std::min(cols, first + group);
    int32_t top = 0;
    for (int64_t i = first; i < end; i++) {
      int32_t bits;
      std::memcpy(&bits, x + i, 4);
      bits &= 0x7fffffff;
      // As integers NaN and infinity are above every number.
      top = top > bits ? top : bits;
    }
    float largest;
    std::memcpy(&largest, &top, 4);
    const bool finite = top < 0x7f800000;
    // Below the smallest normal number the factor would overflow.
    const float factor = finite && largest > 1e-35f ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    if (factor == 0.0f)
      std::memset(target + first, 0, end - first);
    else
      sum = round_to_codes(x + first, target + first, end - first, factor);
    inputs.scales[row * inputs.groups + g] = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    inputs.sums[row * inputs.groups + g] = sum;
  }
  std::memset(target + cols, 0, inputs.stride - cols);
}

}  // namespace TURNOUT_ISA
