// Weights in panels: 32 rows side by side, so that a product needs no sum across lanes and memory is read in one stream.
#pragma once
#include <cstdint>

namespace turnout {

// A stack of equal matrices (rows, cols). Row r of a matrix lies in panel r / 32, lane r % 32; where the two halves of a
// matrix are paired (gate and up), a panel holds 16 rows of the first half and beside them the same 16 of the second.
// A panel is, group after group,
//   scales [32 lanes]                  float16; none for bfloat16, which has no groups
//   zeros  [32 lanes] and 32 bytes     one byte each; none for symmetric codes
//   factors [group / 64][32 lanes][2]  one byte for 32 columns: codes less the upper half, times the lower; where there are factors
//   codes  [steps][32 lanes][4 bytes]  a step is 2 columns of bfloat16, 4 of 8 bits, 8 of 4 bits
// Of 4-bit codes the low halves of a lane's bytes are its columns 0 to 3, the high halves 4 to 7.
// A panel of bfloat16 may be in twelve bits (twelve_bits.h), without loss:
//   exponents [16] and 48 bytes        those that most of its weights have
//   strays    [strays]                 weights of other exponents, in their order; behind the last one is one past the panel's end
//   pairs of steps [64 bytes of a step][64 of the next][64 of halves of bytes]
// Whoever reads panel after panel reads memory from end to end.
struct Stray {
  uint32_t place;  // in a plain panel, in weights
  uint32_t bits;
};
struct Panels {
  uint8_t* memory;
  int64_t stack, rows, cols;
  int32_t bits, group, has_zeros, paired;
  // Of 4 bits in groups of whole times 64 columns: a group's scale is that of 32 columns divided by a whole number, which lies between.
  int32_t has_factors = 0;
  // Of bfloat16 in twelve bits: for how many strays a panel has room, the mark of their end among them, eight in a line. 0: it is plain.
  int32_t strays = 0;

  int64_t panels() const { return paired ? (rows / 2 + 15) / 16 : (rows + 31) / 32; }
  int64_t cols_of_step() const { return 32 / bits; }
  int64_t steps() const { return (cols + cols_of_step() - 1) / cols_of_step(); }
  int64_t groups() const { return bits == 16 ? 0 : (cols + group - 1) / group; }
  // Two times 32 columns, whose factors lie side by side.
  int64_t pairs_of_group() const { return has_factors ? group / 64 : 0; }
  int64_t head_bytes() const {
    if (bits == 16) return strays ? 64 + strays * static_cast<int64_t>(sizeof(Stray)) : 0;
    return (has_zeros ? 128 : 64) + pairs_of_group() * 64;
  }
  // Of a whole group, its head included.
  int64_t group_bytes() const { return head_bytes() + group / cols_of_step() * 128; }
  int64_t panel_bytes() const {
    if (strays) return head_bytes() + (steps() + 1) / 2 * 192;
    return groups() * head_bytes() + steps() * 128;
  }
  uint8_t* panel(int64_t s, int64_t p) const { return memory + (s * panels() + p) * panel_bytes(); }
  // Which row of its matrix lies in a lane; it may be past the last one.
  int64_t row_of(int64_t p, int64_t lane) const {
    if (!paired) return p * 32 + lane;
    const int64_t row = p * 16 + lane % 16;
    return row >= rows / 2 ? rows : row + (lane < 16 ? 0 : rows / 2);
  }
};

}  // namespace turnout
