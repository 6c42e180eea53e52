// A step over all layers in one call: new tokens of running sequences and stretches of prompts. Values are rounded to bfloat16 where the decoder in torch rounds them.
#pragma once
#include <cmath>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "mixture.h"
#include "plan.h"
#include "prompt_attention.h"
#include "row_experts.h"

namespace TURNOUT_ISA {

using turnout::LayerPlan;
using turnout::ModelPlan;
using turnout::StepPlan;

// Calls work(row) for every row; many of them are shared among the threads, a few at a time.
template <class Work>
static void for_rows(int64_t num_rows, const Work& work) {
  constexpr int64_t kOfUnit = 8;
  run_if_many(num_rows, ceil_div(num_rows, kOfUnit), [&](int64_t unit) {
    for (int64_t row = unit * kOfUnit; row < std::min(num_rows, (unit + 1) * kOfUnit); row++) work(row);
  });
}

static void rms_norm(const bf16* x, const bf16* weight, bf16* out, int64_t width, float eps) {
  // Sixteen sums: the compiler may not reorder one.
  float squares[16] = {}, total = 0.0f;
  int64_t i = 0;
  for (; i + 16 <= width; i += 16)
    for (int lane = 0; lane < 16; lane++) squares[lane] += widen(x[i + lane]) * widen(x[i + lane]);
  for (; i < width; i++) total += widen(x[i]) * widen(x[i]);
  for (float square : squares) total += square;
  const float factor = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
  for (i = 0; i < width; i++) out[i] = narrow(widen(x[i]) * factor * widen(weight[i]));
}

static void add(bf16* x, const bf16* more, int64_t num_rows, int64_t width) {
  for_rows(num_rows, [&](int64_t row) {
    bf16* __restrict target = x + row * width;
    const bf16* __restrict source = more + row * width;
    for (int64_t i = 0; i < width; i++) target[i] = narrow(widen(target[i]) + widen(source[i]));
  });
}

// Turns pairs (i, i + d/2) of one head in place.
static void turn(bf16* head, const bf16* cos, const bf16* sin, int64_t d) {
  const int64_t half = d / 2;
  bf16* __restrict lows = head;
  bf16* __restrict highs = head + half;
  for (int64_t i = 0; i < half; i++) {
    const float low = widen(lows[i]), high = widen(highs[i]), c = widen(cos[i]), s = widen(sin[i]);
    lows[i] = narrow(widen(narrow(low * c)) - widen(narrow(high * s)));
    highs[i] = narrow(widen(narrow(high * c)) + widen(narrow(low * s)));
  }
}

static float dot_float(const float* w, const bf16* x, int64_t length) {
  float sums[16] = {}, total = 0.0f;
  int64_t i = 0;
  for (; i + 16 <= length; i += 16)
    for (int lane = 0; lane < 16; lane++) sums[lane] += w[i + lane] * widen(x[i + lane]);
  for (; i < length; i++) total += w[i] * widen(x[i]);
  for (float sum : sums) total += sum;
  return total;
}

// The K best of a softmax, best first, ties to the lower number. NaN among the logits makes every weight NaN.
static void route(const LayerPlan& layer, const bf16* x, const float* prior, int64_t D, int64_t* ids, float* weights) {
  static thread_local std::vector<float> logits;
  logits.resize(layer.E);
  bool is_nan = false;
  for (int64_t e = 0; e < layer.E; e++) {
    float logit = dot_float(layer.router + e * D, x, D);
    if (layer.temperature != 1.0f) logit /= layer.temperature;
    if (prior) logit += prior[e];
    logits[e] = logit;
    is_nan |= logit != logit;
  }
  for (int64_t k = 0; k < layer.K; k++) {
    int64_t best = -1;
    for (int64_t e = 0; e < layer.E; e++) {
      bool taken = false;
      for (int64_t earlier = 0; earlier < k; earlier++) taken |= ids[earlier] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    ids[k] = best;
  }
  float total = 0.0f;
  const float top = logits[ids[0]];
  for (int64_t k = 0; k < layer.K; k++) total += weights[k] = std::exp(logits[ids[k]] - top);
  if (!layer.renormalise) {
    total = 0.0f;
    for (int64_t e = 0; e < layer.E; e++) total += std::exp(logits[e] - top);
  }
  for (int64_t k = 0; k < layer.K; k++) weights[k] = is_nan ? NAN : weights[k] / total;
}

// What a step works in; each calling thread keeps its own.
struct StepSpace {
  std::vector<bf16> x, normed, qkv, attended, out, shared;
  std::vector<int64_t> ids;
  std::vector<float> weights;
  std::vector<Prompt> prompts;
  int64_t num_singles = 0;
};

static void norm_rows(const bf16* x, const uint16_t* weight, StepSpace& space, const StepPlan& step, int64_t D, float eps) {
  for_rows(step.T, [&](int64_t t) { rms_norm(x + t * D, weight, space.normed.data() + t * D, D, eps); });
}

static void map_or_rows(const Panels* panels, const bf16* rows, const bf16* x, void* out, int out_is_float, int64_t T,
                        int64_t O, int64_t K) {
  if (panels) return map(*panels, x, out, out_is_float, T);
  linear(rows, x, out, out_is_float, T, O, K);
}

static void attention_of(const ModelPlan& model, const LayerPlan& layer, const StepPlan& step, StepSpace& space) {
  const int64_t T = step.T, D = model.D, H = model.H, G = model.G, d = model.d, row = (H + 2 * G) * d;
  norm_rows(space.x.data(), layer.input_norm, space, step, D, model.eps);
  map_or_rows(layer.qkv_panels, layer.qkv, space.normed.data(), space.qkv.data(), 0, T, row, D);
  for_rows(T, [&](int64_t t) {
    bf16* heads = space.qkv.data() + t * row;
    for (int64_t h = 0; h < H + G; h++) {
      const bf16* norm = h < H ? layer.q_norm : layer.k_norm;
      if (norm) rms_norm(heads + h * d, norm, heads + h * d, d, model.eps);
      turn(heads + h * d, model.cos + step.positions[t] * (d / 2), model.sin + step.positions[t] * (d / 2), d);
    }
    std::memcpy(layer.keys + step.slots[t] * G * d, heads + H * d, G * d * 2);
    std::memcpy(layer.values + step.slots[t] * G * d, heads + (H + G) * d, G * d * 2);
  });
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  attend(space.qkv.data(), row, layer.keys, layer.values, step.tables, step.lengths, space.attended.data(),
         space.num_singles, H, G, d, step.M, model.P, scale);
  if (!space.prompts.empty())
    attend_prompts({H, G, d, model.P, layer.keys, layer.values}, space.prompts, space.qkv.data(), row,
                   space.attended.data(), scale);
  map_or_rows(layer.o_panels, layer.o, space.attended.data(), space.out.data(), 0, T, D, H * d);
  add(space.x.data(), space.out.data(), T, D);
}

static int experts_of(const ModelPlan& model, const LayerPlan& layer, const StepPlan& step, StepSpace& space) {
  const int64_t T = step.T, D = model.D, K = layer.K;
  const bf16* normed = space.normed.data();
  space.ids.assign(T * K, 0);
  space.weights.assign(T * K, 1.0f);
  if (layer.router) {
    int64_t* chosen = step.chosen ? step.chosen + layer.moe_index * step.chosen_stride : nullptr;
    for_rows(T, [&](int64_t t) {
      const float* prior = nullptr;
      if (step.prior) prior = step.prior + step.prior_row[t] * step.prior_stride + layer.moe_index * layer.E;
      route(layer, normed + t * D, prior, D, space.ids.data() + t * K, space.weights.data() + t * K);
    });
    if (chosen) std::memcpy(chosen, space.ids.data(), T * K * sizeof(int64_t));
  }
  if (layer.gate_up_panels)
    return mixture(*layer.gate_up_panels, *layer.down_panels, normed, space.ids.data(), space.weights.data(),
                   space.out.data(), T, K);
  return experts(layer.gate_up, layer.down, normed, space.ids.data(), space.weights.data(), space.out.data(), T, K,
                 layer.E, D, layer.F);
}

static int step(const ModelPlan& model, const StepPlan& step) {
  static thread_local StepSpace space;
  const int64_t T = step.T, D = model.D;
  space.x.resize(T * D);
  space.normed.resize(T * D);
  space.out.resize(T * D);
  space.shared.resize(T * D);
  space.qkv.resize(T * (model.H + 2 * model.G) * model.d);
  space.attended.resize(T * model.H * model.d);
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
    attention_of(model, layer, step, space);
    norm_rows(space.x.data(), layer.mlp_norm, space, step, D, model.eps);
    if (int failed = experts_of(model, layer, step, space)) return failed;
    if (layer.shared_gate_up || layer.shared_gate_up_panels) {
      // Beside the routed sum, rounded by itself and then added, as the decoder does.
      space.ids.assign(T, 0);
      space.weights.assign(T, 1.0f);
      if (layer.shared_gate_up_panels)
        mixture(*layer.shared_gate_up_panels, *layer.shared_down_panels, space.normed.data(), space.ids.data(),
                space.weights.data(), space.shared.data(), T, 1);
      else
        experts(layer.shared_gate_up, layer.shared_down, space.normed.data(), space.ids.data(), space.weights.data(),
                space.shared.data(), T, 1, 1, D, layer.shared_F);
      add(space.out.data(), space.shared.data(), T, D);
    }
    add(space.x.data(), space.out.data(), T, D);
  }
  // Only of the tokens that are asked for.
  for (int64_t i = 0; i < step.S; i++)
    rms_norm(space.x.data() + step.sampled[i] * D, model.norm, space.normed.data() + i * D, D, model.eps);
  map_or_rows(model.head_panels, model.head, space.normed.data(), step.logits, 1, step.S, model.V, D);
  return 0;
}

}  // namespace TURNOUT_ISA
