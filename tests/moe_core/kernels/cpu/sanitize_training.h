// What a training step calls for the sanitizers, part of sanitize.cpp.
#pragma once

template <class T>
static Exact<T> numbers(int64_t size) {
  if constexpr (sizeof(T) == 2) return bfloats(size);
  Exact<T> out(size);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < size; i++) out.get()[i] = normal(chance);
  return out;
}

template <class T>
static void training(int64_t rows, int64_t width) {
  const int is_float = sizeof(T) == 4;
  const auto& ops = TURNOUT_ISA::kOps;
  Exact<T> x = numbers<T>(rows * width), grad = numbers<T>(rows * width), weight = numbers<T>(width), out(rows * width);
  Exact<T> both = numbers<T>(rows * 2 * width), d_both(rows * 2 * width);
  Exact<float> factors(rows), d_weight(width), weights = numbers<float>(rows);
  Exact<int64_t> places(rows);
  for (int64_t i = 0; i < rows; i++) places.get()[i] = i ? rows - 1 - i : -1;
  ops.norm(x.get(), weight.get(), is_float, 1e-5f, out.get(), factors.get(), rows, width);
  ops.norm_back(x.get(), weight.get(), grad.get(), is_float, factors.get(), out.get(), d_weight.get(), rows, width);
  ops.norm_back(x.get(), weight.get(), grad.get(), is_float, factors.get(), out.get(), nullptr, rows, width);
  ops.swiglu(both.get(), is_float, out.get(), rows, width);
  ops.swiglu_back(both.get(), grad.get(), is_float, weights.get(), d_both.get(), out.get(), factors.get(), rows, width);
  ops.swiglu_back(both.get(), grad.get(), is_float, weights.get(), nullptr, nullptr, factors.get(), rows, width);
  ops.combine(x.get(), is_float, places.get(), weights.get(), out.get(), rows, 1, width);
  ops.turn_heads(both.get(), is_float, 2 * width, 2 * width, both.get(), grad.get(), -1.0f, d_both.get(), 2 * width, rows, 1, width);
  for (int64_t i = 0; i < rows; i++) places.get()[i] = i % width;
  ops.head_errors(x.get(), is_float, places.get(), factors.get(), 0.5f, 1, rows, width);
}

static void attention_back(int64_t batch, int64_t heads, int64_t groups, int64_t sequence, int64_t width) {
  const int64_t size = batch * sequence * width;
  Exact<uint16_t> q = bfloats(heads * size), k = bfloats(groups * size), v = bfloats(groups * size), grad = bfloats(heads * size);
  Exact<uint16_t> d_q(heads * size), d_k(groups * size), d_v(groups * size);
  TURNOUT_ISA::kOps.attention_back(q.get(), k.get(), v.get(), grad.get(), d_q.get(), d_k.get(), d_v.get(), 0.2f, batch, heads,
                                   groups, sequence, width);
}

template <class T>
static void optimiser(int64_t num) {
  const int is_float = sizeof(T) == 4;
  const auto& ops = TURNOUT_ISA::kOps;
  Exact<T> working = numbers<T>(num), gradient = numbers<T>(num);
  Exact<float> master = numbers<float>(num), average = numbers<float>(num), square(num);
  Exact<double> sums((num + 16383) / 16384);
  const float step[] = {1.0f, 0.9f, 0.01f, 0.3f, 0.1f, 0.95f, 0.05f, 1e-8f};
  for (int64_t i = 0; i < num; i++) square.get()[i] = 1.0f;
  ops.adamw(working.get(), is_float, gradient.get(), is_float, master.get(), average.get(), square.get(), step, num);
  ops.squares(gradient.get(), is_float, sums.get(), num);
}
