// A linear map for few tokens, weights in bfloat16 as they lie in the checkpoint.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "pool.h"
#include "routed.h"

namespace TURNOUT_ISA {

using turnout::Pool;

static void linear(const bf16* w, const bf16* x, void* out, int out_is_float, int64_t T, int64_t O, int64_t K) {
  // About 64 KiB of weights a unit: long enough to be worth a hand-over, short enough to share evenly.
  const int64_t rows_of_unit = std::max<int64_t>(4, std::min<int64_t>(512, 32768 / std::max<int64_t>(K, 1)) / 4 * 4);
  auto work = [&](int64_t unit) {
    int64_t end = std::min(O, (unit + 1) * rows_of_unit);
    for (int64_t row = unit * rows_of_unit; row < end; row += 4) {
      int num_rows = static_cast<int>(std::min<int64_t>(4, end - row));
      const bf16* rows[4];
      for (int r = 0; r < num_rows; r++) rows[r] = w + (row + r) * K;
      for (int64_t t = 0; t < T; t += 4) {
        int num = static_cast<int>(std::min<int64_t>(4, T - t));
        const bf16* inputs[4];
        for (int n = 0; n < num; n++) inputs[n] = x + (t + n) * K;
        float sums[16];
        dots_upto4(num_rows, rows, num, inputs, K, sums, 4 * K);
        for (int n = 0; n < num; n++)
          for (int r = 0; r < num_rows; r++) {
            int64_t place = (t + n) * O + row + r;
            if (out_is_float)
              static_cast<float*>(out)[place] = sums[r * num + n];
            else
              static_cast<bf16*>(out)[place] = narrow(sums[r * num + n]);
          }
      }
    }
  };
  Pool::instance().run(ceil_div(O, rows_of_unit), work);
}

}  // namespace TURNOUT_ISA
