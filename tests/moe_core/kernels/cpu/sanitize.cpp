// Calls every kernel at odd sizes on buffers of exactly their size, for the address and undefined-behaviour sanitizers.
#include <array>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "ops.h"
#include "pool.h"

namespace TURNOUT_ISA { extern const turnout::Ops kOps; }
#if defined(TURNOUT_SOFT_TILES) || defined(__AMX_TILE__)
#define TURNOUT_TILES true
#else
#define TURNOUT_TILES false
#endif

using turnout::Panels;
static std::mt19937 chance(1);

// Exactly so many values on the heap: a read or write one past the end lies in a red zone.
template <class T>
struct Exact {
  std::unique_ptr<T[]> values;
  explicit Exact(int64_t size) : values(new T[size > 0 ? size : 1]()) {}
  T* get() const { return values.get(); }
};

static Exact<uint16_t> bfloats(int64_t size) {
  Exact<uint16_t> out(size);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < size; i++) {
    float value = normal(chance);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    out.get()[i] = static_cast<uint16_t>(bits >> 16);
  }
  return out;
}

struct Packed {
  Exact<uint8_t> memory;
  Panels panels;

  Packed(int64_t stack, int64_t rows, int64_t cols, int bits, int group, bool symmetric, bool paired = false, bool factors = false,
         int strays = 0)
      : memory(0), panels{nullptr, stack, rows, cols, bits, group, bits != 16 && !symmetric, paired, factors, strays} {
    const int64_t bytes = stack * rows * (bits == 16 ? cols * 2 : (cols * bits + 7) / 8);
    const int64_t num_factors = factors ? stack * rows * ((cols + 31) / 32) : 0;
    Exact<uint8_t> from(bytes), from_zeros(factors ? num_factors : stack * rows * panels.groups());
    for (int64_t i = 0; i < num_factors; i++) from_zeros.get()[i] = static_cast<uint8_t>(chance() % 16 + (chance() % 2 ? 7 : 8) * 16);
    Exact<uint16_t> from_scales(stack * rows * panels.groups());
    if (bits == 16) {
      Exact<uint16_t> values = bfloats(stack * rows * cols);
      std::memcpy(from.get(), values.get(), bytes);
    } else
      for (int64_t i = 0; i < bytes; i++) from.get()[i] = static_cast<uint8_t>(chance());
    // One in float16.
    for (int64_t i = 0; i < stack * rows * panels.groups(); i++) from_scales.get()[i] = 0x2000;
    memory = Exact<uint8_t>(stack * panels.panels() * panels.panel_bytes());
    panels.memory = memory.get();
    TURNOUT_ISA::kOps.pack(panels, from.get(), from_scales.get(), from_zeros.get());
  }
};

static void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

static void mixtures(int64_t T, int64_t E, int64_t k, int64_t D, int64_t F) {
  const auto& ops = TURNOUT_ISA::kOps;
  Exact<uint16_t> x = bfloats(T * D), out(T * D);
  Exact<int64_t> ids(T * k);
  Exact<float> weights(T * k);
  for (int64_t i = 0; i < T * k; i++) {
    ids.get()[i] = i % 7 == 6 ? -1 : static_cast<int64_t>(chance() % E);
    weights.get()[i] = 0.5f;
  }
  Exact<uint16_t> up_bias = bfloats(E * 2 * F), down_bias = bfloats(E * D);
  const turnout::Gating clamped{turnout::kClamped, 1.7f, 2.0f, up_bias.get(), down_bias.get()};
  const turnout::Gating gelu{turnout::kGelu, 0.0f, 0.0f, nullptr, nullptr};
  const auto of = [&](int bits, int group, bool symmetric, bool factors, int strays = 0) {
    Packed gate_up(E, 2 * F, D, bits, group, symmetric, true, factors, strays), down(E, D, F, bits, group, symmetric, false, factors, strays);
    Packed up(E, F, D, bits, group, symmetric, false, factors, strays);
    for (turnout::Gating gating : {turnout::Gating{}, clamped, gelu})
      check(!ops.mixture(gate_up.panels, down.panels, gating, x.get(), ids.get(), weights.get(), out.get(), T, k), "mixture");
    Exact<float> floats(T * F);
    ops.map(up.panels, x.get(), floats.get(), 1, T);
  };
  for (int bits : {16, 8, 4})
    for (bool symmetric : {true, false})
      // Small groups have a way of their own in tiles, and wide ones of 8 bits.
      for (int group : symmetric ? std::array<int, 2>{32, 768} : std::array<int, 2>{64, 256}) of(bits, group, symmetric, false);
  of(4, 256, true, true);
  // In twelve bits: with room for all strays, and for none but the mark of their end.
  for (int strays : {64, 8}) of(16, 0, true, false, strays);
  Packed table(1, E * F, D, 16, 0, true, false, false, 64);
  Exact<uint16_t> rows_of_table = bfloats(E * F * D);
  const int64_t strays = ops.most_strays(table.panels, reinterpret_cast<const uint8_t*>(rows_of_table.get()));
  check(strays >= 0 && strays <= table.panels.steps() * 64, "strays");
  Exact<int64_t> rows(T);
  for (int64_t i = 0; i < T; i++) rows.get()[i] = i * 5 % (E * F);
  check(!ops.look_up(table.panels, rows.get(), out.get(), T), "rows in twelve bits");
  Exact<uint16_t> rows_in = bfloats(E * 2 * F * D), rows_out = bfloats(E * D * F);
  check(!ops.experts(rows_in.get(), rows_out.get(), x.get(), ids.get(), weights.get(), out.get(), T, k, E, D, F), "experts");
  ids.get()[0] = E;
  check(ops.experts(rows_in.get(), rows_out.get(), x.get(), ids.get(), weights.get(), out.get(), T, k, E, D, F) == 1, "bad id");
}

// Tokens of which none has an expert: there is none to read, and outputs are nought.
static void nobody(int64_t T, int64_t D, int64_t F) {
  Exact<uint16_t> x = bfloats(T * D), out = bfloats(T * D);
  Exact<int64_t> ids(2 * T);
  Exact<float> weights(2 * T);
  std::fill_n(ids.get(), 2 * T, -1);
  for (int bits : {16, 8, 4}) {
    Packed gate_up(1, 2 * F, D, bits, 32, true, true), down(1, D, F, bits, 32, true);
    check(!TURNOUT_ISA::kOps.mixture(gate_up.panels, down.panels, turnout::Gating{}, x.get(), ids.get(), weights.get(), out.get(), T, 2),
          "mixture of nobody");
    for (int64_t i = 0; i < T * D; i++) check(out.get()[i] == 0, "an output of nobody");
  }
}

#include "sanitize_steps.h"

// A gate of random rows by itself, for one token and for several.
static void gates(int64_t T, int64_t D, int64_t E, int64_t K) {
  Exact<uint16_t> narrow = bfloats(E * D), x = bfloats(T * D);
  Exact<float> wide(E * D), weights(T * K);
  Exact<int64_t> words(T), rows(T), ids(T * K);
  for (int64_t i = 0; i < E * D; i++) {
    const uint32_t bits = static_cast<uint32_t>(narrow.get()[i]) << 16;
    std::memcpy(wide.get() + i, &bits, 4);
  }
  turnout::StepPlan step{};
  step.ids = words.get();
  step.prior_row = rows.get();
  step.T = T;
  turnout::LayerPlan layer{};
  layer.E = E;
  layer.K = K;
  layer.gate.temperature = layer.gate.factor = 1.0f;
  layer.gate.num_groups = layer.gate.topk_group = 1;
  for (int32_t kind : {turnout::kTopk, turnout::kSigmoid})
    for (int32_t is_narrow : {0, 1}) {
      layer.gate.scores = kind;
      layer.gate.narrow = is_narrow;
      layer.gate.router = is_narrow ? static_cast<const void*>(narrow.get()) : wide.get();
      TURNOUT_ISA::kOps.choose(layer, step, x.get(), D, ids.get(), weights.get());
      for (int64_t i = 0; i < T * K; i++) check(ids.get()[i] >= 0 && ids.get()[i] < E, "an expert of a gate");
    }
}

static void prompts(int64_t T, int64_t length, int64_t H, int64_t G, int64_t d) {
  const int64_t P = 4, blocks = (length + P - 1) / P;
  Exact<uint16_t> q = bfloats(T * H * d), keys = bfloats(blocks * P * G * d), values = bfloats(blocks * P * G * d), out(T * H * d);
  // Values that are infinite or no numbers go a way of their own.
  values.get()[0] = 0x7f80, values.get()[blocks * P * G * d / 2] = 0x7fc0;
  Exact<int64_t> table(blocks);
  for (int64_t m = 0; m < blocks; m++) table.get()[m] = blocks - 1 - m;
  // The same blocks as those of T sequences of different lengths.
  Exact<int64_t> tables(T * blocks), lengths(T);
  for (int64_t t = 0; t < T; t++) {
    std::copy_n(table.get(), blocks, tables.get() + t * blocks);
    lengths.get()[t] = length - t % length;
  }
  Exact<uint16_t> sinks = bfloats(H);
  for (int64_t window : {0, 1, 33}) {
    const turnout::Heads heads{keys.get(), values.get(), window ? sinks.get() : nullptr, H, G, d, d, P, G * d, window, 0.3f};
    TURNOUT_ISA::kOps.attend_prompt(heads, q.get(), H * d, table.get(), out.get(), T, length);
    TURNOUT_ISA::kOps.attend(heads, q.get(), H * d, tables.get(), lengths.get(), out.get(), T, blocks);
  }
  // Values that are the first of their keys, one head for all queries.
  const int64_t e = (d + 1) / 2;
  Exact<uint16_t> q_latent = bfloats(T * H * G * d), latents = bfloats(blocks * P * d), out_latent(T * H * G * e);
  const turnout::Heads one{latents.get(), latents.get(), nullptr, H * G, 1, d, e, P, d, 0, 0.3f};
  TURNOUT_ISA::kOps.attend_prompt(one, q_latent.get(), H * G * d, table.get(), out_latent.get(), T, length);
}

// One token of each of some sequences, of few keys and of many: heads by themselves, and all of them together.
static void rows_of_sequences(const std::vector<int64_t>& lengths, int64_t H, int64_t G, int64_t d, int64_t e) {
  const int64_t P = 4, B = static_cast<int64_t>(lengths.size());
  int64_t M = 0, blocks = 0;
  for (int64_t length : lengths) M = std::max(M, (length + P - 1) / P), blocks += (length + P - 1) / P;
  Exact<uint16_t> q = bfloats(B * H * d), keys = bfloats(blocks * P * G * d), values = bfloats(blocks * P * G * e), out(B * H * e),
                  sinks = bfloats(H);
  Exact<int64_t> tables(B * M), ends(B);
  for (int64_t b = 0, block = blocks; b < B; b++) {
    ends.get()[b] = lengths[b];
    for (int64_t m = 0; m * P < lengths[b]; m++) tables.get()[b * M + m] = --block;
  }
  for (int64_t window : {0, 1, 33}) {
    const turnout::Heads heads{keys.get(), values.get(), window ? sinks.get() : nullptr, H, G, d, e, P, G * e, window, 0.3f};
    TURNOUT_ISA::kOps.attend(heads, q.get(), H * d, tables.get(), ends.get(), out.get(), B, M);
  }
}

static void rounded(int64_t rows, int64_t cols) {
  Exact<uint16_t> narrow = bfloats(rows * cols);
  Exact<float> wide(rows * cols);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < rows * cols; i++) wide.get()[i] = normal(chance) * (i % 3 ? 1.0f : 1e-9f);
  if (rows > 1) wide.get()[0] = 1e38f, wide.get()[cols] = std::numeric_limits<float>::quiet_NaN();
  for (int bits : {8, 4})
    for (int group : {32, 128, 1024})
      for (int symmetric : {1, 0}) {
        const int64_t groups = (cols + group - 1) / group;
        Exact<uint8_t> codes(rows * ((cols * bits + 7) / 8)), zeros(rows * groups);
        Exact<uint16_t> scales(rows * groups);
        const auto quantise = [&](const void* from, int is_bf16, int super_group) {
          TURNOUT_ISA::kOps.quantise(from, is_bf16, rows, cols, bits, group, symmetric, super_group, codes.get(), scales.get(), zeros.get());
        };
        quantise(narrow.get(), 1, 0);
        quantise(wide.get(), 0, 0);
        if (bits == 4 && group == 32 && symmetric) quantise(wide.get(), 0, 256);
      }
}

// What the machine can do at most; of tiles only where there are some.
static void limits() {
  Exact<uint8_t> memory((1 << 20) + 300);
  TURNOUT_ISA::kOps.read_memory(memory.get(), (1 << 20) + 300);
  for (int kind : {0, 1}) check(TURNOUT_ISA::kOps.multiply_registers(kind, 3, 5) == 1.0f, "products in registers");
}

static void scores(int64_t rows, int64_t cols) {
  Exact<float> values(rows * cols);
  Exact<int64_t> best(rows);
  for (int64_t i = 0; i < rows * cols; i++) values.get()[i] = static_cast<float>(chance() % 100);
  values.get()[0] = std::numeric_limits<float>::infinity();
  TURNOUT_ISA::kOps.largest(values.get(), rows, cols, best.get());
  check(best.get()[0] == -1, "a row that is not finite has no largest");
}

#include "sanitize_training.h"

int main() {
#if defined(__AMX_TILE__)
  // As the library does: tiles are handed out on request.
  check(syscall(SYS_arch_prctl, 0x1023, 18) == 0, "tiles are not handed out");
#endif
  check(TURNOUT_ISA::kOps.tiles_work() == (TURNOUT_TILES ? 1 : 0), "products in tiles");
  for (int threads : {1, 3}) {
    turnout::Pool::instance().set_threads(threads);
    // First, where a thread has no list of experts from before.
    nobody(1, 7, 5);
    nobody(20, 40, 33);
    mixtures(1, 1, 1, 1, 1);
    mixtures(2, 3, 2, 7, 5);
    mixtures(13, 4, 2, 33, 17);
    mixtures(40, 5, 3, 72, 49);
    // So many rows an expert that codes of any form are multiplied in tiles.
    mixtures(75, 2, 2, 72, 49);
    // More than a group of 256 columns, and as many tokens as a prompt.
    mixtures(14, 2, 2, 300, 290);
    mixtures(130, 2, 1, 40, 33);
    nobody(130, 40, 33);
    limits();
    rounded(1, 1);
    rounded(19, 45);
    rounded(3, 200);
    gates(1, 1, 1, 1);
    gates(1, 33, 7, 7);
    gates(7, 65, 37, 5);
    gates(35, 31, 65, 3);
    scores(1, 1);
    scores(5, 37);
    training<float>(1, 1);
    training<float>(37, 300);
    training<uint16_t>(1, 1);
    training<uint16_t>(37, 300);
    attention_back(1, 1, 1, 32, 32);
    attention_back(2, 4, 2, 160, 64);
    optimiser<float>(1);
    optimiser<uint16_t>(16384 + 77);
    prompts(1, 1, 1, 1, 1);
    prompts(5, 37, 6, 2, 7);
    prompts(40, 64, 3, 3, 33);
    prompts(21, 301, 4, 2, 66);
    rows_of_sequences({1}, 1, 1, 1, 1);
    rows_of_sequences({7, 130, 3}, 10, 2, 33, 31);
    rows_of_sequences({2051, 300}, 7, 1, 34, 67);
    rows_of_sequences({1030, 5}, 9, 3, 64, 96);
    whole_step(9, 3, 1, 6, 4, 2, 5, 11);
    whole_step(40, 4, 2, 10, 5, 3, 33, 50);
  }
  std::puts("clean");
  return 0;
}
