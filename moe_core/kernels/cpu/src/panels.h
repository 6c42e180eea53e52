// Weights in panels: sixteen rows side by side, so that a product needs no sum across lanes and memory is read in one stream.
#pragma once
#include <cstdint>

namespace turnout {

// A stack of equal matrices (rows, cols). Row r of matrix s lies in panel r / 16 of that matrix, lane r % 16.
//   codes  [stack][panels][steps][16 lanes][4 bytes]   a step is 2 columns of bfloat16, 4 of 8 bits, 8 of 4 bits
//   scales [stack][panels][groups][16 lanes]           float16; none for bfloat16
//   zeros  [stack][panels][groups][16 lanes]           none for bfloat16 and for symmetric codes
// Of 4-bit codes the low halves of a lane's bytes are its columns 0 to 3, the high halves 4 to 7.
struct Panels {
  void* codes;
  uint16_t* scales;
  uint8_t* zeros;
  int64_t stack, rows, cols;
  int32_t bits, group;

  int64_t panels() const { return (rows + 15) / 16; }
  int64_t cols_of_step() const { return 32 / bits; }
  int64_t steps() const { return (cols + cols_of_step() - 1) / cols_of_step(); }
  int64_t groups() const { return bits == 16 ? 0 : (cols + group - 1) / group; }
  uint8_t* panel(int64_t s, int64_t p) const {
    return static_cast<uint8_t*>(codes) + (s * panels() + p) * steps() * 64;
  }
  int64_t meta(int64_t s, int64_t p) const { return (s * panels() + p) * groups() * 16; }
};

}  // namespace turnout
