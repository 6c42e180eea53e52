// Whole steps of a model for the sanitizers, part of sanitize.cpp: heads of every kind, every gate, latents.
#pragma once

// The same step with every other gate in one of its layers, under a floor.
static void other_gates(const turnout::ModelPlan& model, turnout::LayerPlan& layer, const turnout::StepPlan& step, int64_t D,
                        int64_t E, int64_t K, int64_t V) {
  const turnout::Gate kept = layer.gate;
  Exact<float> upper(E * D), table(V * K);
  for (int64_t i = 0; i < V * K; i++) table.get()[i] = static_cast<float>((i + i / K) % E);
  for (int32_t kind : {turnout::kTopk, turnout::kSparsemax, turnout::kBest, turnout::kTable}) {
    layer.gate.scores = kind;
    layer.gate.table = kind == turnout::kTable ? table.get() : nullptr;
    check(TURNOUT_ISA::kOps.step(model, step) == 0, "step with another gate");
  }
  layer.gate = kept;
  layer.gate.scores = turnout::kTopk;
  layer.gate.reach = 0.5f;
  layer.gate.domain_router = layer.gate.group_router = upper.get();
  layer.gate.num_domains = 1;
  layer.gate.num_groups = E;
  check(TURNOUT_ISA::kOps.step(model, step) == 0, "step with levels");
  Exact<uint16_t> narrow = bfloats(E * D);
  layer.gate.router = layer.gate.domain_router = layer.gate.group_router = narrow.get();
  layer.gate.narrow = 1;
  check(TURNOUT_ISA::kOps.step(model, step) == 0, "step with levels in bfloat16");
  layer.gate = kept;
  Exact<int64_t> roots(E);
  for (int64_t e = 0; e < E; e++) roots.get()[e] = e % K;
  layer.gate.roots = roots.get();
  layer.gate.hold = 0.5f;
  for (int32_t holds : {0, 1})
    for (int32_t kind : {turnout::kSigmoid, turnout::kTopk}) {
      layer.gate.holds = holds;
      layer.gate.scores = kind;
      check(TURNOUT_ISA::kOps.step(model, step) == 0, "step with twins");
    }
  layer.gate = kept;
}

// A model of a plain layer, of one with everything that heads may have, and of one with latents; three sequences of different lengths.
static void whole_step(int64_t D, int64_t H, int64_t G, int64_t d, int64_t E, int64_t K, int64_t F, int64_t V) {
  const int64_t P = 4, M = 3, blocks = 3 * M + 1, qkv_rows = (H + 2 * G) * d, turning = (d / 2 + 1) / 2 * 2;
  Exact<uint16_t> embedding = bfloats(V * D), norm = bfloats(D), qkv = bfloats(qkv_rows * D), o = bfloats(D * H * d),
                  head_norm = bfloats(d), up = bfloats(2 * F * D), down = bfloats(D * F), turns = bfloats(P * M * (d / 2)),
                  keys(blocks * P * G * d), values(blocks * P * G * d), half_turns = bfloats(P * M * (turning / 2)),
                  qkv_bias = bfloats(qkv_rows), q_norm = bfloats(H * d), k_norm = bfloats(G * d), head_gate = bfloats(H * D),
                  up_bias = bfloats(E * 2 * F), down_bias = bfloats(E * D), sinks = bfloats(H);
  Exact<float> router(E * D), prior(2 * E), router_bias(E);
  Packed qkv_panels(1, qkv_rows, D, 16, 0, true), gate_up(E, 2 * F, D, 4, 32, false, true), narrow(E, D, F, 4, 32, false);
  turnout::LayerPlan plain{}, full{};
  plain.input_norm = plain.mlp_norm = norm.get();
  plain.qkv = qkv.get();
  plain.q_norm = plain.k_norm = head_norm.get();
  plain.o = o.get();
  plain.cos = plain.sin = turns.get();
  plain.turning = d;
  plain.gate_up = up.get();
  plain.down = down.get();
  plain.heads = {keys.get(), values.get(), nullptr, H, G, d, d, P, G * d, 0, 0.3f};
  plain.E = plain.K = 1;
  plain.F = F;
  full = plain;
  full.qkv_panels = &qkv_panels.panels;
  full.qkv_bias = qkv_bias.get();
  full.q_norm = q_norm.get();
  full.k_norm = k_norm.get();
  full.whole_norms = 1;
  full.clip = 1.5f;
  full.cos = full.sin = half_turns.get();
  full.turning = turning;
  full.heads.window = 3;
  full.heads.sinks = sinks.get();
  full.head_gate = head_gate.get();
  full.o_bias = norm.get();
  full.mlp_norm = nullptr;
  full.gate = {router.get(), router_bias.get(), router_bias.get(), nullptr, nullptr, nullptr, nullptr, 2, 1, 0,
               turnout::kSigmoid, 1, 1, 0, 0, 0.7f, 2.5f, 0.0f, 0.0f};
  full.gating = {turnout::kClampedSilu, 0.0f, 0.5f, up_bias.get(), down_bias.get()};
  full.gate_up_panels = &gate_up.panels;
  full.down_panels = &narrow.panels;
  full.shared_gate_up = up.get();
  full.shared_down = down.get();
  full.shared_gate = norm.get();
  full.shared_F = F;
  full.E = E;
  full.K = K;
  // Latents of 7 and 4 values with positions, values of 5, queries through 6.
  const int64_t r = 7, p = 4, v = 5, q_rank = 6;
  Exact<uint16_t> latents(blocks * P * (r + p)), o_latent = bfloats(D * H * v), q_down_norm = bfloats(q_rank),
                  kv_norm = bfloats(r), latent_turns = bfloats(P * M * (p / 2));
  Packed q_up(1, H * (d + p), q_rank, 16, 0, true), q_down(1, q_rank, D, 16, 0, true), kv_down(1, r + p, D, 16, 0, true),
      up_keys(H, r, d, 16, 0, true), up_values(H, v, r, 16, 0, true);
  turnout::LayerPlan latent = full;
  latent.qkv_panels = &q_up.panels;
  latent.o = o_latent.get();
  latent.cos = latent.sin = latent_turns.get();
  latent.turning = p;
  latent.heads = {latents.get(), latents.get(), nullptr, H, 1, r + p, r, P, r + p, 0, 0.3f};
  latent.latent = {&q_down.panels, q_down_norm.get(), &kv_down.panels, kv_norm.get(), &up_keys.panels, &up_values.panels, q_rank, 1e-6f};
  turnout::LayerPlan layers[] = {plain, full, latent};
  turnout::ModelPlan model{embedding.get(), nullptr, norm.get(), embedding.get(), nullptr, layers, 3, D, V, 1e-5f, 1.0f, 1};
  // Two sequences with one new token, and one with five.
  const int64_t B = 3, lengths_of[] = {1, 6, 11}, new_of[] = {1, 1, 5}, tokens = 7;
  Exact<int64_t> ids(tokens), positions(tokens), slots(tokens), tables(B * M), lengths(B), firsts(B + 1), rows(tokens),
      chosen(tokens * K), sampled(B);
  Exact<float> all_logits(B * V), floor(2);
  Exact<uint8_t> mine(2 * E);
  floor.get()[0] = 0.9f;
  mine.get()[E - 1] = 1;
  int64_t t = 0;
  for (int64_t b = 0; b < B; b++) {
    const int64_t length = lengths_of[b];
    for (int64_t m = 0; m < M; m++) tables.get()[b * M + m] = m * P < length ? 1 + b * M + m : 0;
    for (int64_t place = length - new_of[b]; place < length; place++, t++) {
      ids.get()[t] = V - 1 - t;
      positions.get()[t] = place;
      slots.get()[t] = tables.get()[b * M + place / P] * P + place % P;
      rows.get()[t] = t % 2;
    }
    lengths.get()[b] = length;
    firsts.get()[b + 1] = t;
    sampled.get()[b] = t - 1;
  }
  turnout::StepPlan step{ids.get(), positions.get(), slots.get(), rows.get(), firsts.get(), lengths.get(), tables.get(),
                         sampled.get(), prior.get(), floor.get(), mine.get(), chosen.get(), all_logits.get(), tokens, B, M, B, E,
                         1, tokens * K};
  check(TURNOUT_ISA::kOps.step(model, step) == 0, "step");
  other_gates(model, layers[1], step, D, E, K, V);
  Packed head(1, V, D, 16, 0, true);
  model.embedding_panels = model.head_panels = &head.panels;
  check(TURNOUT_ISA::kOps.step(model, step) == 0, "step with its embedding in panels");
  ids.get()[1] = V;
  check(TURNOUT_ISA::kOps.step(model, step) == 2, "a token outside the vocabulary");
}
