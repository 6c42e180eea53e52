// What every instruction set offers; all pointers are to contiguous memory unless a stride is given.
#pragma once
#include <cstdint>

#include "panels.h"
#include "plan.h"

namespace turnout {

struct Ops {
  // out[t][o] = dot(w[o], x[t]): T inputs of K, O rows; out is float32 or bfloat16.
  void (*linear)(const uint16_t* w, const uint16_t* x, void* out, int out_is_float, int64_t T, int64_t O, int64_t K);
  // Mixture of SwiGLU experts; returns 0, or 1 for an expert number out of range.
  int (*experts)(const uint16_t* gate_up, const uint16_t* down, const uint16_t* x, const int64_t* ids,
                 const float* weights, uint16_t* out, int64_t T, int64_t k, int64_t E, int64_t D, int64_t F);
  // The same with weights in panels: E matrices (2F, D), gate and up paired, and E matrices (D, F).
  int (*mixture)(const Panels& gate_up, const Panels& down, const Gating& gating, const uint16_t* x, const int64_t* ids,
                 const float* weights, uint16_t* out, int64_t T, int64_t k);
  // out[t][o] = row o · x[t] of one matrix in panels; out is float32 or bfloat16.
  void (*map)(const Panels& weight, const uint16_t* x, void* out, int out_is_float, int64_t T);
  // out[t][s] = matrix s · x[t][s] of a stack in panels, one for each head; strides of a token and of a head.
  void (*map_heads)(const Panels& stack, const uint16_t* x, int64_t x_token, int64_t x_head, uint16_t* out,
                    int64_t out_token, int64_t out_head, int64_t T);
  // out[t] = row ids[t] of one matrix in bfloat16 panels; returns 0, or 1 for a row that it has not.
  int (*look_up)(const Panels& weight, const int64_t* ids, uint16_t* out, int64_t T);
  // Rows as a checkpoint holds them into panels; `zeros` are factors where panels have them.
  void (*pack)(const Panels& to, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros);
  // The most strays that a panel would have, were these bfloat16 weights packed in twelve bits.
  int64_t (*most_strays)(const Panels& of, const uint8_t* weights);
  // Rows of float32 or bfloat16 into codes as a checkpoint holds them; `zeros` is not written for symmetric ones. Scales of a
  // super-group, if it is not 0, have a common one.
  void (*quantise)(const void* weight, int is_bf16, int64_t rows, int64_t cols, int bits, int group, int symmetric,
                   int super_group, uint8_t* codes, uint16_t* scales, uint8_t* zeros);
  // One query token a sequence over paged keys and values.
  void (*attend)(const Heads& heads, const uint16_t* q, int64_t q_stride, const int64_t* tables, const int64_t* lengths,
                 uint16_t* out, int64_t B, int64_t M);
  // The newest T tokens of one sequence of `length` over its paged keys and values, each seeing what is not after it.
  void (*attend_prompt)(const Heads& heads, const uint16_t* q, int64_t q_stride, const int64_t* table, uint16_t* out,
                        int64_t T, int64_t length);
  // out[t] = the first of the largest of a row of scores, or -1 where any of it is not finite.
  void (*largest)(const float* scores, int64_t rows, int64_t cols, int64_t* out);
  // 1 when products in tiles are right on this machine, 0 when they are not or the set has none.
  int (*tiles_work)();
  // Limits of the machine: bytes read once, and products in registers (24 of 64 bytes a round and unit).
  int64_t (*read_memory)(const uint8_t* memory, int64_t bytes);
  float (*multiply_registers)(int kind, int64_t units, int64_t rounds);
  // Experts and weights (T, K) of inputs (T, D), by the gate of a layer and the priors of a step.
  void (*choose)(const LayerPlan& layer, const StepPlan& step, const uint16_t* x, int64_t D, int64_t* ids, float* weights);
  // A step over all layers; returns 0, 1 for an expert out of range, 2 for a token outside the vocabulary.
  int (*step)(const ModelPlan& model, const StepPlan& step);
  // What a training step does beside its products (training.h); tensors are float32 or bfloat16.
  void (*head_errors)(void* logits, int is_float, const int64_t* targets, float* losses, float factor, int wants_errors,
                      int64_t R, int64_t V);
  void (*swiglu)(const void* both, int is_float, void* act, int64_t R, int64_t F);
  void (*swiglu_back)(const void* both, const void* d_act, int is_float, const float* weights, void* d_both, void* act,
                      float* d_weights, int64_t R, int64_t F);
  void (*combine)(const void* rows, int is_float, const int64_t* places, const float* weights, void* out, int64_t tokens,
                  int64_t k, int64_t D);
  void (*norm)(const void* x, const void* weight, int is_float, float eps, void* out, float* factors, int64_t R, int64_t D);
  void (*norm_back)(const void* x, const void* weight, const void* d_out, int is_float, const float* factors, void* d_x,
                    float* d_weight, int64_t R, int64_t D);
  void (*turn_heads)(const void* x, int is_float, int64_t x_token, int64_t x_head, const void* cos, const void* sin,
                     float sign, void* out, int64_t out_token, int64_t tokens, int64_t H, int64_t half);
  // What an optimiser does (adamw.h); `numbers` are the eight of AdamWStep, in its order.
  void (*adamw)(void* working, int working_is_float, const void* gradient, int gradient_is_float, float* master,
                float* average, float* square, const float* numbers, int64_t num);
  void (*squares)(const void* x, int is_float, double* sums, int64_t num);
  // Gradients of causal attention (attention_back.h); 0 where the set has no tiles.
  int (*attention_back)(const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint16_t* d_out, uint16_t* d_q, uint16_t* d_k,
                        uint16_t* d_v, float scale, int64_t B, int64_t H, int64_t G, int64_t S, int64_t d);
};

}  // namespace turnout
