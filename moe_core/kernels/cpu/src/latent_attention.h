// Latent attention: keys and values of all heads in one latent, which queries and outputs are brought to and from.
#pragma once
#include "step_space.h"

namespace TURNOUT_ISA {

using turnout::Latent;

// out[t][s] = matrix s · x[t][s] of a stack, one for each head: (T, S, rows) and (T, S, cols), bfloat16, with strides of a token
// and of a head.
static void map_heads(const Panels& m, const bf16* x, int64_t x_token, int64_t x_head, bf16* out, int64_t out_token,
                      int64_t out_head, int64_t T) {
  Workspace& space = workspace();
  space.tiles.clear();
  space.first_tile.clear();
  for (int64_t s = 0; s < m.stack; s++) {
    space.first_tile.push_back(static_cast<int64_t>(space.tiles.size()));
    tiles_of(m, s * T, (s + 1) * T, space.tiles);
  }
  space.first_tile.push_back(static_cast<int64_t>(space.tiles.size()));
  space.in.resize(m.stack * T, m);
  run_if_many(m.stack * T, static_cast<int64_t>(space.tiles.size()), [&](int64_t i) {
    const Tile& tile = space.tiles[i];
    const bf16* rows[kMost];
    for (int n = 0; n < tile.num; n++) rows[n] = x + (tile.first + n) % T * x_token + tile.first / T * x_head;
    put_rows(space.in, tile, m, rows);
  });
  const int64_t panels = m.panels(), of_unit = std::max<int64_t>(1, 65536 / m.panel_bytes()), units = ceil_div(panels, of_unit);
  Pool::instance().run(m.stack * units, [&](int64_t unit) {
    const TilesOfUnit tiles_of_unit;
    const int64_t s = unit / units, end = std::min(panels, (unit % units + 1) * of_unit);
    alignas(64) float sums[kMost * 32];
    for (int64_t p = unit % units * of_unit; p < end; p++) {
      Multiplied panel(m, m.panel(s, p), m.panel(s, p + 1), space.first_tile[s + 1] - space.first_tile[s]);
      for (int64_t i = space.first_tile[s]; i < space.first_tile[s + 1]; i++) {
        const Tile& tile = space.tiles[i];
        panel.by(tile.num, space.in.operand(tile.first), sums);
        const int64_t width = std::min<int64_t>(32, m.rows - p * 32);
        for (int n = 0; n < tile.num; n++) {
          bf16* target = out + (tile.first + n) % T * out_token + s * out_head + p * 32;
          for (int64_t j = 0; j < width; j++) target[j] = narrow(sums[n * 32 + j]);
        }
      }
    }
  });
}

// One token's latent: its norm, and the key's part with positions beside it.
static void finish_latent(const ModelPlan& model, const LayerPlan& layer, bf16* latent, int64_t position) {
  const int64_t r = layer.heads.e, place = position * (layer.turning / 2);
  rms_norm(latent, layer.latent.kv_norm, latent, r, layer.latent.eps);
  turn(latent + r, layer.cos + place, layer.sin + place, layer.turning, model.interleaved);
}

// Queries (T, H, r + p): those parts that turn are taken over, the others mapped to the latent's space.
static void latent_queries(const ModelPlan& model, const LayerPlan& layer, const StepPlan& step, StepSpace& space) {
  const Latent& latent = layer.latent;
  const int64_t T = step.T, H = layer.heads.H, d = layer.heads.d, r = layer.heads.e, p = layer.turning, n = latent.up_keys->cols;
  const bf16* in = space.normed.data();
  int64_t width = model.D;
  if (latent.q_rank) {
    space.low.resize(T * latent.q_rank);
    map(*latent.q_down_panels, in, space.low.data(), 0, T);
    for_rows(T, [&](int64_t t) {
      bf16* row = space.low.data() + t * latent.q_rank;
      rms_norm(row, latent.q_norm, row, latent.q_rank, latent.eps);
    });
    in = space.low.data();
    width = latent.q_rank;
  }
  space.qkv.resize(T * H * (n + p));
  space.queries.resize(T * H * d);
  map_or_rows(layer.qkv_panels, layer.qkv, in, space.qkv.data(), 0, T, H * (n + p), width);
  for_rows(T, [&](int64_t t) {
    const int64_t place = step.positions[t] * (p / 2);
    for (int64_t h = 0; h < H; h++) {
      bf16* target = space.queries.data() + (t * H + h) * d + r;
      std::memcpy(target, space.qkv.data() + (t * H + h) * (n + p) + n, p * 2);
      turn(target, layer.cos + place, layer.sin + place, p, model.interleaved);
    }
  });
  map_heads(*latent.up_keys, space.qkv.data(), H * (n + p), n + p, space.queries.data(), H * d, d, T);
}

static void latent_attention_of(const ModelPlan& model, const LayerPlan& layer, const StepPlan& step, StepSpace& space) {
  const Heads& heads = layer.heads;
  const Latent& latent = layer.latent;
  const int64_t T = step.T, D = model.D, H = heads.H, d = heads.d, r = heads.e, v = latent.up_values->rows;
  norm_rows(model, space.x.data(), layer.input_norm, space, T);
  space.latents.resize(T * d);
  map(*latent.kv_down_panels, space.normed.data(), space.latents.data(), 0, T);
  for_rows(T, [&](int64_t t) {
    finish_latent(model, layer, space.latents.data() + t * d, step.positions[t]);
    std::memcpy(heads.keys + step.slots[t] * d, space.latents.data() + t * d, d * 2);
  });
  latent_queries(model, layer, step, space);
  space.attended.resize(T * H * r);
  attend_all(heads, step, space, space.queries.data(), H * d, space.attended.data());
  space.qkv.resize(T * H * v);
  map_heads(*latent.up_values, space.attended.data(), H * r, r, space.qkv.data(), H * v, v, T);
  map_or_rows(layer.o_panels, layer.o, space.qkv.data(), space.out.data(), 0, T, D, H * v);
  add(space.x.data(), space.out.data(), T, D);
}

}  // namespace TURNOUT_ISA
