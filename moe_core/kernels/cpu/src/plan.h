// What a step over a whole model is told: the weights once, the tokens each time.
#pragma once
#include <cstdint>

#include "panels.h"

namespace turnout {

// H query heads over paged keys and values of G heads, P tokens a block; d width of a key, e of a value.
struct Heads {
  uint16_t* keys;         // (blocks, P, G, d)
  uint16_t* values;       // (blocks, P, G, e)
  const uint16_t* sinks;  // (H) scores that take part in the softmax and carry no value, or none
  int64_t H, G, d, e, P;
  int64_t value_row;  // from a token's values to the next one's
  int64_t window;     // how many keys a token sees, its own included; 0 for all
  float scale;        // on the scores, before the softmax
};

// What stands between gate and up of an expert; numbered as in plan.py.
enum GatingKind : int32_t { kSilu = 0, kGelu = 1, kClamped = 2, kClampedSilu = 3 };

struct Gating {
  int32_t kind;
  float alpha, limit;            // of the clamped forms
  const uint16_t* gate_up_bias;  // (E, 2F), or none
  const uint16_t* down_bias;     // (E, D), or none
};

// What makes scores of a router's logits; numbered as in plan.py. From `kTopk` on the choice is by the logits: `kTopk` weighs by a
// softmax, `kSparsemax` by a projection on the simplex, `kBest` by a sigmoid; `kTable` chooses by the token alone.
enum ScoreKind : int32_t {
  kSoftmax = 0, kSigmoid = 1, kSqrtSoftplus = 2, kTopk = 3, kSparsemax = 4, kBest = 5, kTable = 6
};

// How a token finds its experts.
struct Gate {
  const void* router;           // (E, D); none in a dense layer, and where a table weighs equally
  const float* bias;            // (E) on the logits, or none
  const float* selection_bias;  // (E) on what chooses alone, or none
  // Maps of the levels above a hierarchy's experts, (domains, D) and (groups, D), or none.
  const void* domain_router;
  const void* group_router;
  const float* table;    // (V, K) whole numbers, or none
  const int64_t* roots;  // (E) the lowest number among an expert's twins, or none where there are no twins
  int64_t num_groups, topk_group;  // experts come from so many of the groups
  int64_t num_domains;             // of a hierarchy
  int32_t scores;
  int32_t two_best;  // a group is worth its two best experts, or its best
  int32_t renormalise;
  int32_t holds;     // of twins the gate's best is seen, not the one that a token's hash names
  int32_t narrow;    // the maps are in bfloat16, not in float32
  float temperature, factor;  // under the logits; on the weights
  float reach;                // no more experts than reach so much of the softmax; 0 for as many as there are places
  float hold;                 // added to the logit of the hash's twin
};

// Latent attention, all in panels: r width of the latent, p values of a key that turn, n values of a head's query that do not.
// Queries of H heads of r + p values see one key of as many, whose first r are its value.
struct Latent {
  const Panels* q_down_panels;   // (q_rank, D), or none
  const uint16_t* q_norm;        // (q_rank)
  const Panels* kv_down_panels;  // (r + p, D)
  const uint16_t* kv_norm;       // (r)
  const Panels* up_keys;         // H matrices (r, n)
  const Panels* up_values;       // H matrices (v, r)
  int64_t q_rank;                // 0 where queries come straight from the hidden state
  float eps;                     // of the two norms
};

// T tokens, D model width, E experts, K top_k, F expert width.
struct LayerPlan {
  const uint16_t* input_norm;  // (D)
  // Maps in panels where there are some, else as rows.
  const Panels* qkv_panels;
  const Panels* o_panels;
  const uint16_t* qkv;        // ((H + 2G) d, D); of latent attention (H (n + p), q_rank or D)
  const uint16_t* qkv_bias;   // ((H + 2G) d), or none
  const uint16_t* q_norm;     // (d), or (H d) of whole projections, or none
  const uint16_t* k_norm;     // (d), or (G d), or none
  const uint16_t* head_gate;  // (H, D), or none
  const uint16_t* o;          // (D, H d), or (D, H v)
  const uint16_t* o_bias;     // (D), or none
  const uint16_t* mlp_norm;   // (D), or none where the feed-forward reads what attention reads
  const uint16_t* cos;        // (positions, turning / 2)
  const uint16_t* sin;        // (positions, turning / 2)
  // The experts in panels, or as rows: (E, 2F, D) and (E, D, F). A dense feed-forward is one expert.
  const Panels* gate_up_panels;
  const Panels* down_panels;
  const uint16_t* gate_up;
  const uint16_t* down;
  // The shared expert, in panels or as rows, or none; and what weighs it, a map to one number, or none.
  const Panels* shared_gate_up_panels;
  const Panels* shared_down_panels;
  const uint16_t* shared_gate_up;
  const uint16_t* shared_down;
  const uint16_t* shared_gate;  // (D)
  Heads heads;
  Latent latent;  // none where `up_keys` is: heads with keys and values of their own
  Gate gate;
  // Rows know silu alone.
  Gating gating, shared_gating;
  int64_t E, K, F, shared_F;
  int64_t moe_index;    // among the expert layers
  int64_t turning;      // of a head, how many values turn with the position
  int32_t whole_norms;  // one norm over all heads of queries, or of keys
  float clip;           // bound on queries, keys and values; 0 for none
};

struct ModelPlan {
  // The embedding as rows or in panels, and the head, which may be the same.
  const uint16_t* embedding;  // (V, D)
  const Panels* embedding_panels;
  const uint16_t* norm;  // (D)
  const uint16_t* head;  // (V, D)
  const Panels* head_panels;
  const LayerPlan* layers;
  int64_t L, D, V;
  float eps;
  float norm_offset;    // added to the weights of norms: 1 where they are centred on zero
  int32_t interleaved;  // pairs (2i, 2i + 1) turn, and come out apart by half
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
  const float* floor;        // (domains + 1, expert layers) least share of a domain's own experts, or none
  const uint8_t* mine;       // (domains + 1, E) not 0 for those, where there are floors
  int64_t* chosen;           // (expert layers, most tokens, K): the experts taken, for whoever counts
  float* logits;             // (S, V)
  int64_t T, B, M, S;
  int64_t prior_stride;   // of a domain
  int64_t floor_stride;   // of a domain
  int64_t chosen_stride;  // of a layer
};

}  // namespace turnout
