// What the parts of a step share: where it works, norms, and attention of all its sequences.
#pragma once
#include <vector>

#include "attention.h"
#include "plan.h"
#include "prompt_attention.h"
#include "rows.h"

namespace TURNOUT_ISA {

using turnout::LayerPlan;
using turnout::ModelPlan;
using turnout::StepPlan;

// What a step works in; each calling thread keeps its own.
struct StepSpace {
  std::vector<bf16> x, normed, qkv, attended, out, shared, shares, low, latents, queries;
  std::vector<int64_t> ids;
  std::vector<float> weights;
  std::vector<Prompt> prompts;
  int64_t num_singles = 0;
};

static void norm_rows(const ModelPlan& model, const bf16* x, const bf16* weight, StepSpace& space, int64_t T) {
  for_rows(T, [&](int64_t t) {
    rms_norm(x + t * model.D, weight, space.normed.data() + t * model.D, model.D, model.eps, model.norm_offset);
  });
}

// Attention of all sequences of a step over what their caches hold: queries (T, H, d), out (T, H, e).
static void attend_all(const Heads& heads, const StepPlan& step, const StepSpace& space, const bf16* q, int64_t q_stride,
                       bf16* out) {
  attend(heads, q, q_stride, step.tables, step.lengths, out, space.num_singles, step.M);
  if (!space.prompts.empty()) attend_prompts(heads, space.prompts, q, q_stride, out);
}

}  // namespace TURNOUT_ISA
