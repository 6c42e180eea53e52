// What every instruction set offers; all pointers are to contiguous memory unless a stride is given.
#pragma once
#include <cstdint>

namespace turnout {

struct Ops {
  // out[t][o] = dot(w[o], x[t]): T inputs of K, O rows; out is float32 or bfloat16.
  void (*linear)(const uint16_t* w, const uint16_t* x, void* out, int out_is_float, int64_t T, int64_t O, int64_t K);
  // Mixture of SwiGLU experts; returns 0, or 1 for an expert number out of range.
  int (*experts)(const uint16_t* gate_up, const uint16_t* down, const uint16_t* x, const int64_t* ids,
                 const float* weights, uint16_t* out, int64_t T, int64_t k, int64_t E, int64_t D, int64_t F);
  // One query token a sequence over paged keys and values.
  void (*attend)(const uint16_t* q, int64_t q_stride, const uint16_t* keys, const uint16_t* values,
                 const int64_t* tables, const int64_t* lengths, uint16_t* out, int64_t B, int64_t H, int64_t G,
                 int64_t d, int64_t M, int64_t P, float scale);
};

}  // namespace turnout
