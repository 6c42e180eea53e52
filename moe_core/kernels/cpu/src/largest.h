// The likeliest token of each row of scores, in one pass, and whether the row is finite at all.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>

#include "multiply.h"
#include "pool.h"

namespace TURNOUT_ISA {

using turnout::Pool;

typedef float Sixteen __attribute__((vector_size(64)));

// The first place of the largest of `cols` values, or -1 where one of them is NaN or infinite: times nought it is not nought.
static int64_t largest_of(const float* row, int64_t cols) {
  float lanes[16], rests[16] = {}, best = -std::numeric_limits<float>::infinity(), rest = 0.0f;
  const Sixteen nought = {};
  Sixteen bests = nought + best, sums = nought;
  int64_t col = 0;
  for (; col + 16 <= cols; col += 16) {
    Sixteen scores;
    std::memcpy(&scores, row + col, 64);
    bests = scores > bests ? scores : bests;
    sums += scores * nought;
  }
  std::memcpy(lanes, &bests, 64);
  std::memcpy(rests, &sums, 64);
  for (int lane = 0; lane < 16; lane++) {
    best = std::max(best, lanes[lane]);
    rest += rests[lane];
  }
  for (; col < cols; col++) {
    best = std::max(best, row[col]);
    rest += row[col] * 0.0f;
  }
  if (!(rest == 0.0f)) return -1;
  return std::find(row, row + cols, best) - row;
}

static void largest(const float* scores, int64_t rows, int64_t cols, int64_t* out) {
  Pool::instance().run(rows, [&](int64_t row) { out[row] = largest_of(scores + row * cols, cols); });
}

}  // namespace TURNOUT_ISA
