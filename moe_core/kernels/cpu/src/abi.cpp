// The plain C face of the library, and the choice of instruction set by what the processor has.
#include <atomic>
#include <cstring>
// Without it one plain set is all: another architecture, or a test of one set.
#if defined(__x86_64__) && !defined(TURNOUT_ONE_SET)
#define TURNOUT_MANY_SETS
#endif
#if defined(TURNOUT_MANY_SETS) && defined(__linux__)
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#endif

#include "checksum.h"
#include "ops.h"
#include "pool.h"
#if defined(TURNOUT_MANY_SETS)
#include "processor.h"
#endif

#define TURNOUT_API __attribute__((visibility("default")))
// The command that compiles, as the builder calls it; which compiler that was, it says itself.
#if !defined(TURNOUT_BUILT_WITH)
#define TURNOUT_BUILT_WITH "c++"
#endif
#if defined(__clang__)
#define TURNOUT_COMPILER TURNOUT_BUILT_WITH " (" __VERSION__ ")"
#else
#define TURNOUT_COMPILER TURNOUT_BUILT_WITH " (GCC " __VERSION__ ")"
#endif

namespace generic { extern const turnout::Ops kOps; }
#if defined(TURNOUT_MANY_SETS)
namespace amx { extern const turnout::Ops kOps; }
namespace avx2 { extern const turnout::Ops kOps; }
namespace avx512 { extern const turnout::Ops kOps; }
namespace avx512_vnni { extern const turnout::Ops kOps; }
namespace avx512_bf16 { extern const turnout::Ops kOps; }
#endif

namespace {

struct Choice {
  const char* name;
  const turnout::Ops* ops;
  bool usable;
};

#if defined(TURNOUT_MANY_SETS)
// Linux hands out the registers of tiles on request, once a process (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). They are tried in
// a child first: what some hypervisor promises and does not hold must not end an engine.
bool may_use_tiles() {
#if defined(__linux__)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return false;
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    for (int fault : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGALRM}) signal(fault, SIG_DFL);
    // It asks for memory, of which another thread may have held the lock when this one was forked.
    alarm(10);
    _exit(amx::kOps.tiles_work() ? 0 : 1);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return false;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
#else
  return false;
#endif
}
#endif

const Choice* choices() {
#if defined(TURNOUT_MANY_SETS)
  static const turnout::Processor has;
  static const bool has_amx = has.amx && may_use_tiles();
  static const Choice all[] = {{"amx", &amx::kOps, has_amx},
                               {"avx512_bf16", &avx512_bf16::kOps, has.bf16},
                               {"avx512_vnni", &avx512_vnni::kOps, has.vnni},
                               {"avx512", &avx512::kOps, has.avx512},
                               {"avx2", &avx2::kOps, has.avx2},
                               {"generic", &generic::kOps, true},
                               {nullptr, nullptr, false}};
#else
  static const Choice all[] = {{"generic", &generic::kOps, true}, {nullptr, nullptr, false}};
#endif
  return all;
}

// Another than the best, where a test asked for it.
std::atomic<const Choice*> chosen{nullptr};

const Choice& choice() {
  static const Choice* const best = [] {
    const Choice* first = choices();
    while (!first->usable) first++;
    return first;
  }();
  const Choice* asked = chosen.load(std::memory_order_relaxed);
  return asked ? *asked : *best;
}

const turnout::Ops& ops() { return *choice().ops; }

}  // namespace

extern "C" {

// Changes with every change of a signature below.
TURNOUT_API int turnout_abi() { return 10; }

TURNOUT_API const char* turnout_isa() { return choice().name; }

// What compiled this library.
TURNOUT_API const char* turnout_compiler() { return TURNOUT_COMPILER; }

// Use the named instruction set; 0 when the processor lacks it or the name is unknown. For tests.
TURNOUT_API int turnout_use_isa(const char* name) {
  for (const Choice* choice = choices(); choice->name; choice++)
    if (choice->usable && !std::strcmp(choice->name, name)) {
      chosen = choice;
      return 1;
    }
  return 0;
}

// Whether the set in use multiplies in tiles and rightly so. For tests.
TURNOUT_API int turnout_tiles_work() { return ops().tiles_work(); }

TURNOUT_API void turnout_set_threads(int num_threads) { turnout::Pool::instance().set_threads(num_threads); }

TURNOUT_API int64_t turnout_waited_ns() { return turnout::Pool::instance().waited_ns(); }

TURNOUT_API void turnout_linear(const uint16_t* w, const uint16_t* x, void* out, int out_is_float, int64_t T, int64_t O,
                    int64_t K) {
  ops().linear(w, x, out, out_is_float, T, O, K);
}

TURNOUT_API int turnout_experts(const uint16_t* gate_up, const uint16_t* down, const uint16_t* x, const int64_t* ids,
                    const float* weights, uint16_t* out, int64_t T, int64_t k, int64_t E, int64_t D, int64_t F) {
  return ops().experts(gate_up, down, x, ids, weights, out, T, k, E, D, F);
}

TURNOUT_API int turnout_mixture(const turnout::Panels* gate_up, const turnout::Panels* down, const turnout::Gating* gating,
                    const uint16_t* x, const int64_t* ids, const float* weights, uint16_t* out, int64_t T, int64_t k) {
  return ops().mixture(*gate_up, *down, *gating, x, ids, weights, out, T, k);
}

TURNOUT_API void turnout_map(const turnout::Panels* weight, const uint16_t* x, void* out, int out_is_float, int64_t T) {
  ops().map(*weight, x, out, out_is_float, T);
}

TURNOUT_API void turnout_map_heads(const turnout::Panels* stack, const uint16_t* x, int64_t x_token, int64_t x_head,
                    uint16_t* out, int64_t out_token, int64_t out_head, int64_t T) {
  ops().map_heads(*stack, x, x_token, x_head, out, out_token, out_head, T);
}

TURNOUT_API int turnout_look_up(const turnout::Panels* weight, const int64_t* ids, uint16_t* out, int64_t T) {
  return ops().look_up(*weight, ids, out, T);
}

TURNOUT_API void turnout_pack(const turnout::Panels* to, const uint8_t* codes, const uint16_t* scales,
                    const uint8_t* zeros) {
  ops().pack(*to, codes, scales, zeros);
}

TURNOUT_API int64_t turnout_most_strays(const turnout::Panels* of, const uint8_t* weights) { return ops().most_strays(*of, weights); }

TURNOUT_API void turnout_quantise(const void* weight, int is_bf16, int64_t rows, int64_t cols, int bits, int group,
                    int symmetric, int super_group, uint8_t* codes, uint16_t* scales, uint8_t* zeros) {
  ops().quantise(weight, is_bf16, rows, cols, bits, group, symmetric, super_group, codes, scales, zeros);
}

TURNOUT_API int64_t turnout_read_memory(const uint8_t* memory, int64_t bytes) { return ops().read_memory(memory, bytes); }

TURNOUT_API float turnout_multiply_registers(int kind, int64_t units, int64_t rounds) {
  return ops().multiply_registers(kind, units, rounds);
}

TURNOUT_API void turnout_largest(const float* scores, int64_t rows, int64_t cols, int64_t* out) {
  ops().largest(scores, rows, cols, out);
}

TURNOUT_API uint64_t turnout_checksum(const uint8_t* bytes, int64_t num_bytes) {
  return turnout::checksum(bytes, num_bytes);
}

TURNOUT_API void turnout_choose(const turnout::LayerPlan* layer, const turnout::StepPlan* step, const uint16_t* x, int64_t D,
                    int64_t* ids, float* weights) {
  ops().choose(*layer, *step, x, D, ids, weights);
}

TURNOUT_API int turnout_step(const turnout::ModelPlan* model, const turnout::StepPlan* step) {
  return ops().step(*model, *step);
}

TURNOUT_API void turnout_attend(const turnout::Heads* heads, const uint16_t* q, int64_t q_stride, const int64_t* tables,
                    const int64_t* lengths, uint16_t* out, int64_t B, int64_t M) {
  ops().attend(*heads, q, q_stride, tables, lengths, out, B, M);
}

TURNOUT_API void turnout_attend_prompt(const turnout::Heads* heads, const uint16_t* q, int64_t q_stride,
                    const int64_t* table, uint16_t* out, int64_t T, int64_t length) {
  ops().attend_prompt(*heads, q, q_stride, table, out, T, length);
}

TURNOUT_API void turnout_head_errors(void* logits, int is_float, const int64_t* targets, float* losses, float factor,
                    int wants_errors, int64_t R, int64_t V) {
  ops().head_errors(logits, is_float, targets, losses, factor, wants_errors, R, V);
}

TURNOUT_API void turnout_swiglu(const void* both, int is_float, void* act, int64_t R, int64_t F) {
  ops().swiglu(both, is_float, act, R, F);
}

TURNOUT_API void turnout_swiglu_back(const void* both, const void* d_act, int is_float, const float* weights, void* d_both,
                    void* act, float* d_weights, int64_t R, int64_t F) {
  ops().swiglu_back(both, d_act, is_float, weights, d_both, act, d_weights, R, F);
}

TURNOUT_API void turnout_combine(const void* rows, int is_float, const int64_t* places, const float* weights, void* out,
                    int64_t tokens, int64_t k, int64_t D) {
  ops().combine(rows, is_float, places, weights, out, tokens, k, D);
}

TURNOUT_API void turnout_norm(const void* x, const void* weight, int is_float, float eps, void* out, float* factors, int64_t R,
                    int64_t D) {
  ops().norm(x, weight, is_float, eps, out, factors, R, D);
}

TURNOUT_API void turnout_norm_back(const void* x, const void* weight, const void* d_out, int is_float, const float* factors,
                    void* d_x, float* d_weight, int64_t R, int64_t D) {
  ops().norm_back(x, weight, d_out, is_float, factors, d_x, d_weight, R, D);
}

TURNOUT_API void turnout_turn_heads(const void* x, int is_float, int64_t x_token, int64_t x_head, const void* cos,
                    const void* sin, float sign, void* out, int64_t out_token, int64_t tokens, int64_t H, int64_t half) {
  ops().turn_heads(x, is_float, x_token, x_head, cos, sin, sign, out, out_token, tokens, H, half);
}

TURNOUT_API void turnout_adamw(void* working, int working_is_float, const void* gradient, int gradient_is_float, float* master,
                    float* average, float* square, const float* numbers, int64_t num) {
  ops().adamw(working, working_is_float, gradient, gradient_is_float, master, average, square, numbers, num);
}

TURNOUT_API void turnout_squares(const void* x, int is_float, double* sums, int64_t num) {
  ops().squares(x, is_float, sums, num);
}

TURNOUT_API int turnout_attention_back(const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint16_t* d_out, uint16_t* d_q,
                    uint16_t* d_k, uint16_t* d_v, float scale, int64_t B, int64_t H, int64_t G, int64_t S, int64_t d) {
  return ops().attention_back(q, k, v, d_out, d_q, d_k, d_v, scale, B, H, G, S, d);
}
}
