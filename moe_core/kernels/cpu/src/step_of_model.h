// A step over all layers in one call: new tokens of running sequences and stretches of prompts. Values are rounded to bfloat16 where the decoder in torch rounds them.
#pragma once
#include <vector>

#include "gates.h"
#include "latent_attention.h"
#include "levels.h"
#include "row_experts.h"
#include "step_space.h"
#include "twins.h"

namespace TURNOUT_ISA {

// One token's queries, keys and values out of their map: biases, norms, bounds, positions.
static void finish_heads(const ModelPlan& model, const LayerPlan& layer, bf16* qkv, int64_t position) {
  const int64_t H = layer.heads.H, G = layer.heads.G, d = layer.heads.d, row = (H + 2 * G) * d;
  if (layer.qkv_bias) add_row(qkv, layer.qkv_bias, row);
  auto norm = [&](const bf16* weight, bf16* head, int64_t width) {
    if (weight) rms_norm(head, weight, head, width, model.eps, model.norm_offset);
  };
  if (layer.whole_norms) {
    norm(layer.q_norm, qkv, H * d);
    norm(layer.k_norm, qkv + H * d, G * d);
  } else {
    for (int64_t h = 0; h < H + G; h++) norm(h < H ? layer.q_norm : layer.k_norm, qkv + h * d, d);
  }
  for (int64_t i = 0; layer.clip > 0.0f && i < row; i++) qkv[i] = narrow(within(widen(qkv[i]), layer.clip));
  const int64_t place = position * (layer.turning / 2);
  for (int64_t h = 0; h < H + G; h++)
    turn(qkv + h * d, layer.cos + place, layer.sin + place, layer.turning, model.interleaved);
}

static void attention_of(const ModelPlan& model, const LayerPlan& layer, const StepPlan& step, StepSpace& space) {
  const Heads& heads = layer.heads;
  const int64_t T = step.T, D = model.D, H = heads.H, G = heads.G, d = heads.d, row = (H + 2 * G) * d;
  space.qkv.resize(T * row);
  space.attended.resize(T * H * d);
  norm_rows(model, space.x.data(), layer.input_norm, space, T);
  map_or_rows(layer.qkv_panels, layer.qkv, space.normed.data(), space.qkv.data(), 0, T, row, D);
  for_rows(T, [&](int64_t t) {
    bf16* qkv = space.qkv.data() + t * row;
    finish_heads(model, layer, qkv, step.positions[t]);
    std::memcpy(heads.keys + step.slots[t] * G * d, qkv + H * d, G * d * 2);
    std::memcpy(heads.values + step.slots[t] * G * d, qkv + (H + G) * d, G * d * 2);
  });
  attend_all(heads, step, space, space.qkv.data(), row, space.attended.data());
  if (layer.head_gate) {
    space.shares.resize(T * H);
    linear(layer.head_gate, space.normed.data(), space.shares.data(), 0, T, H, D);
    weigh(space.attended.data(), space.shares.data(), T * H, d);
  }
  map_or_rows(layer.o_panels, layer.o, space.attended.data(), space.out.data(), 0, T, D, H * d);
  add_bias(space.out.data(), layer.o_bias, T, D);
  add(space.x.data(), space.out.data(), T, D);
}

// logits (T, E) of a layer's gate before anything is added to them; zeros of a table that weighs equally.
static void gate_logits(const Gate& gate, const bf16* x, std::vector<float>& logits, int64_t T, int64_t E, int64_t D) {
  static thread_local std::vector<float> domains, groups;
  logits.assign(T * E, 0.0f);
  if (!gate.domain_router) {
    if (gate.router) router_logits(gate, gate.router, x, logits.data(), T, E, D);
    return;
  }
  const int64_t N = gate.num_domains, G = gate.num_groups;
  domains.resize(T * N);
  groups.resize(T * G);
  Gate level{};
  level.temperature = 1.0f;
  level.narrow = gate.narrow;
  router_logits(level, gate.domain_router, x, domains.data(), T, N, D);
  router_logits(level, gate.group_router, x, groups.data(), T, G, D);
  router_logits(level, gate.router, x, logits.data(), T, E, D);
  for (int64_t t = 0; t < T; t++) join_levels(domains.data() + t * N, groups.data() + t * G, logits.data() + t * E, N, G, E);
  for (float& logit : logits) logit /= gate.temperature;
}

static Asked asked_of(const LayerPlan& layer, const StepPlan& step, int64_t t) {
  const int64_t row = step.prior_row[t], at = layer.moe_index;
  const float* prior = step.prior ? step.prior + row * step.prior_stride + at * layer.E : nullptr;
  if (!step.floor) return {prior, nullptr, 0.0f};
  return {prior, step.mine + row * layer.E, step.floor[row * step.floor_stride + at]};
}

// Each token's experts and their weights, (T, K), by what its layer's gate says of x, (T, D).
static void choose(const LayerPlan& layer, const StepPlan& step, const bf16* x, int64_t D, int64_t* ids, float* weights) {
  static thread_local std::vector<float> logits_of_thread;
  std::vector<float>& all = logits_of_thread;
  const int64_t T = step.T, E = layer.E, K = layer.K;
  const Gate& gate = layer.gate;
  gate_logits(gate, x, all, T, E, D);
  for_rows(T, [&](int64_t t) {
    float* logits = all.data() + t * E;
    Asked asked = asked_of(layer, step, t);
    if (gate.roots) {
      OneOfTwins& twins = twins_of_thread();
      twins.set(gate, E);
      asked = twins.look(gate, logits, x + t * D, D, asked);
    }
    for (int64_t e = 0; asked.prior && e < E; e++) logits[e] += asked.prior[e];
    if (asked.mine) add_shift(floor_shift(gate, logits, asked.mine, asked.floor, E), asked.mine, logits, E);
    route(gate, logits, step.ids[t], E, K, ids + t * K, weights + t * K);
    for (int64_t k = t * K; gate.roots && k < (t + 1) * K; k++)
      if (ids[k] != kNoExpert && asked.prior[ids[k]] == -INFINITY && logits[ids[k]] == -INFINITY)
        ids[k] = kNoExpert, weights[k] = 0.0f;
  });
}

static int experts_of(const ModelPlan& model, const LayerPlan& layer, const StepPlan& step, StepSpace& space) {
  const int64_t T = step.T, K = layer.K;
  space.ids.assign(T * K, 0);
  space.weights.assign(T * K, 1.0f);
  if (layer.gate.router || layer.gate.table) {
    choose(layer, step, space.normed.data(), model.D, space.ids.data(), space.weights.data());
    if (step.chosen)
      std::memcpy(step.chosen + layer.moe_index * step.chosen_stride, space.ids.data(), T * K * sizeof(int64_t));
  }
  if (layer.gate_up_panels)
    return mixture(*layer.gate_up_panels, *layer.down_panels, layer.gating, space.normed.data(), space.ids.data(),
                   space.weights.data(), space.out.data(), T, K);
  return experts(layer.gate_up, layer.down, space.normed.data(), space.ids.data(), space.weights.data(), space.out.data(),
                 T, K, layer.E, model.D, layer.F);
}

// Beside the routed sum, rounded by itself and then added, as the decoder does.
static void add_shared_expert(const ModelPlan& model, const LayerPlan& layer, int64_t T, StepSpace& space) {
  space.ids.assign(T, 0);
  space.weights.assign(T, 1.0f);
  if (layer.shared_gate_up_panels)
    mixture(*layer.shared_gate_up_panels, *layer.shared_down_panels, layer.shared_gating, space.normed.data(),
            space.ids.data(), space.weights.data(), space.shared.data(), T, 1);
  else
    experts(layer.shared_gate_up, layer.shared_down, space.normed.data(), space.ids.data(), space.weights.data(),
            space.shared.data(), T, 1, 1, model.D, layer.shared_F);
  if (layer.shared_gate) {
    space.shares.resize(T);
    linear(layer.shared_gate, space.normed.data(), space.shares.data(), 0, T, 1, model.D);
    weigh(space.shared.data(), space.shares.data(), T, model.D);
  }
  add(space.out.data(), space.shared.data(), T, model.D);
}

static int step(const ModelPlan& model, const StepPlan& step) {
  static thread_local StepSpace space;
  const int64_t T = step.T, D = model.D;
  space.x.resize(T * D);
  space.normed.resize(T * D);
  space.out.resize(T * D);
  space.shared.resize(T * D);
  if (model.embedding_panels && look_up(*model.embedding_panels, step.ids, space.x.data(), T)) return 2;
  for (int64_t t = 0; t < T && !model.embedding_panels; t++) {
    if (step.ids[t] < 0 || step.ids[t] >= model.V) return 2;
    std::memcpy(space.x.data() + t * D, model.embedding + step.ids[t] * D, D * 2);
  }
  space.prompts.clear();
  space.num_singles = 0;
  for (int64_t b = 0; b < step.B; b++) {
    const int64_t first = step.firsts[b], num = step.firsts[b + 1] - first;
    if (num == 1 && space.prompts.empty())
      space.num_singles++;
    else
      space.prompts.push_back({first, num, step.lengths[b], step.tables + b * step.M});
  }
  for (int64_t l = 0; l < model.L; l++) {
    const LayerPlan& layer = model.layers[l];
    if (layer.latent.up_keys)
      latent_attention_of(model, layer, step, space);
    else
      attention_of(model, layer, step, space);
    if (layer.mlp_norm) norm_rows(model, space.x.data(), layer.mlp_norm, space, T);
    if (int failed = experts_of(model, layer, step, space)) return failed;
    if (layer.shared_gate_up || layer.shared_gate_up_panels) add_shared_expert(model, layer, T, space);
    add(space.x.data(), space.out.data(), T, D);
  }
  // Only of the tokens that are asked for.
  for (int64_t i = 0; i < step.S; i++)
    rms_norm(space.x.data() + step.sampled[i] * D, model.norm, space.normed.data() + i * D, D, model.eps, model.norm_offset);
  map_or_rows(model.head_panels, model.head, space.normed.data(), step.logits, 1, step.S, model.V, D);
  return 0;
}

}  // namespace TURNOUT_ISA
