// What a step over a whole model is told: the weights once, the tokens each time.
#pragma once
#include <cstdint>

#include "panels.h"

namespace turnout {

// T tokens, D model width, H query heads, G key-value heads, d head_dim, E experts, K top_k, F expert width.
struct LayerPlan {
  const uint16_t* input_norm;  // (D)
  // Maps in panels where there are some, else as rows.
  const Panels* qkv_panels;
  const Panels* o_panels;
  const uint16_t* qkv;         // ((H + 2G) d, D)
  const uint16_t* q_norm;      // (d), or none
  const uint16_t* k_norm;      // (d), or none
  const uint16_t* o;           // (D, H d)
  const uint16_t* mlp_norm;    // (D)
  const float* router;         // (E, D); none in a dense layer
  // The experts in panels, or as rows: (E, 2F, D) and (E, D, F). A dense feed-forward is one expert.
  const Panels* gate_up_panels;
  const Panels* down_panels;
  const uint16_t* gate_up;
  const uint16_t* down;
  // The shared expert, in panels or as rows, or none.
  const Panels* shared_gate_up_panels;
  const Panels* shared_down_panels;
  const uint16_t* shared_gate_up;
  const uint16_t* shared_down;
  uint16_t* keys;    // (blocks, P, G, d)
  uint16_t* values;  // (blocks, P, G, d)
  int64_t E, K, F, shared_F;
  int64_t moe_index;  // among the expert layers
  int32_t renormalise;
  float temperature;
};

struct ModelPlan {
  // The embedding as rows or in panels, and the head, which may be the same.
  const uint16_t* embedding;  // (V, D)
  const Panels* embedding_panels;
  const uint16_t* norm;  // (D)
  const uint16_t* head;  // (V, D)
  const Panels* head_panels;
  const uint16_t* cos;        // (positions, d/2)
  const uint16_t* sin;        // (positions, d/2)
  const LayerPlan* layers;
  int64_t L, D, V, H, G, d, P;
  float eps;
};

// T new tokens of B sequences, each one's side by side; sequences with a single token come first.
struct StepPlan {
  const int64_t* ids;        // (T) token
  const int64_t* positions;  // (T)
  const int64_t* slots;      // (T) block · P + place: where its keys and values go
  const int64_t* prior_row;  // (T) row of the prior
  const int64_t* firsts;     // (B + 1) where each sequence's tokens begin, and T
  const int64_t* lengths;    // (B) keys that its newest token sees, its own included
  const int64_t* tables;     // (B, M) blocks
  const int64_t* sampled;    // (S) tokens whose logits are wanted
  const float* prior;        // (domains + 1, expert layers, E) added to the logits, or none
  int64_t* chosen;           // (expert layers, most tokens, K): the experts taken, for whoever counts
  float* logits;             // (S, V)
  int64_t T, B, M, S;
  int64_t prior_stride;   // of a domain
  int64_t chosen_stride;  // of a layer
};

}  // namespace turnout
