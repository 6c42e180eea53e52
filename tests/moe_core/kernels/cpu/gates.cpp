// A router's product and its choice, compiled alone: against double precision, with other companies, and against plain loops.
// Prints the largest error as a share of what the terms come to, and then 1 for each law that held.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "gates.h"

using namespace TURNOUT_ISA;
static std::mt19937 chance(7);

static float drawn() { return std::normal_distribution<float>()(chance); }

static bool same_bits(const float* a, const float* b, int64_t num) { return std::memcmp(a, b, num * sizeof(float)) == 0; }

struct Laws {
  double error = 0.0;
  bool rows_alike = true, company = true, choices = true;
};

// Exactly so many on the heap, with NaN around them.
template <class T>
struct Poisoned {
  std::vector<T> all;
  T* values;
  Poisoned(int64_t num, T nan) : all(num + 128, nan), values(all.data() + 64) {}
};

static void product(int64_t T, int64_t E, int64_t D, float temperature, bool biased, Laws& laws) {
  Poisoned<bf16> narrow(E * D, 0x7fc0), x(T * D, 0x7fc0);
  Poisoned<float> wide(E * D, NAN), bias(E, NAN), of_narrow(T * E, NAN), of_wide(T * E, NAN), alone(E, NAN);
  for (int64_t i = 0; i < E * D; i++) wide.values[i] = widen(narrow.values[i] = TURNOUT_ISA::narrow(drawn()));
  for (int64_t i = 0; i < T * D; i++) x.values[i] = TURNOUT_ISA::narrow(drawn());
  for (int64_t e = 0; e < E; e++) bias.values[e] = drawn();
  Gate gate{};
  gate.temperature = temperature;
  gate.bias = biased ? bias.values : nullptr;
  router_logits(gate, wide.values, x.values, of_wide.values, T, E, D);
  gate.narrow = 1;
  router_logits(gate, narrow.values, x.values, of_narrow.values, T, E, D);
  laws.rows_alike &= same_bits(of_wide.values, of_narrow.values, T * E);
  for (int64_t t = 0; t < T; t++) {
    router_logits(gate, narrow.values, x.values + t * D, alone.values, 1, E, D);
    laws.company &= same_bits(alone.values, of_narrow.values + t * E, E);
    for (int64_t e = 0; e < E; e++) {
      double sum = biased ? bias.values[e] : 0.0, size = std::fabs(sum);
      for (int64_t d = 0; d < D; d++) {
        const double term = double(wide.values[e * D + d]) * widen(x.values[t * D + d]);
        sum += term, size += std::fabs(term);
      }
      laws.error = std::max(laws.error, std::fabs(of_narrow.values[t * E + e] * double(temperature) - sum) / size);
    }
  }
}

// One after another, each put before those that it is above; NaN is above none, and none is above it.
static std::vector<int64_t> plainly(const std::vector<float>& scores, int64_t K) {
  std::vector<int64_t> held;
  for (int64_t e = 0; e < static_cast<int64_t>(scores.size()); e++) {
    if (static_cast<int64_t>(held.size()) == K) {
      if (!(scores[e] > scores[held.back()])) continue;
      held.pop_back();
    }
    auto place = held.end();
    while (place != held.begin() && scores[e] > scores[*(place - 1)]) place--;
    held.insert(place, e);
  }
  return held;
}

static void choice(int64_t E, int64_t K, Laws& laws) {
  // Numbers of few values are often equal; some are masked, infinite, -0, or NaN.
  const float special[] = {-INFINITY, INFINITY, -0.0f, 0.0f, NAN};
  const int kind = chance() % 5;
  std::vector<float> scores(E);
  for (float& score : scores) {
    score = kind == 0 ? drawn() : static_cast<float>(static_cast<int>(chance() % 5) - 2);
    if (kind > 1 && chance() % 3 == 0) score = special[chance() % (kind == 2 ? 1 : kind == 3 ? 4 : 5)];
    if (kind == 4 && chance() % 4) score = -INFINITY;
  }
  std::vector<int64_t> ids(K, -7);
  best_of(scores.data(), E, K, ids.data());
  laws.choices &= ids == plainly(scores, K);
}

int main() {
  Laws laws;
  for (int64_t D : {1, 2, 15, 31, 32, 33, 64, 100, 577})
    for (int64_t E : {1, 3, 4, 5, 9, 16, 61})
      for (int64_t T : {1, 2, 3, 4, 5, 7, 16, 33}) product(T, E, D, T % 2 ? 1.0f : 0.7f, D % 2, laws);
  // Enough to be shared among threads, and more experts than a hundred.
  turnout::Pool::instance().set_threads(3);
  for (int64_t E : {128, 257, 300}) product(70, E, 96, 1.0f, false, laws);
  for (int64_t E = 1; E <= 300; E++)
    for (int round = 0; round < 20; round++) {
      choice(E, 1 + chance() % std::min<int64_t>(E, 12), laws);
      choice(E, 1 + chance() % E, laws);
    }
  std::printf("%g %d %d %d\n", laws.error, laws.rows_alike, laws.company, laws.choices);
  return 0;
}
