// Shares the units of one job between the calling thread and a few helpers.
//
// The caller never waits for a helper that has not begun: it takes units itself until none are left, and then waits
// only for units that a helper holds. On a busy machine, where a helper may not run for milliseconds, a job then costs
// what it costs on one thread, instead of a scheduler's quantum at a barrier. A helper that loses its processor in the middle
// of a unit does keep the caller waiting; how long in all is counted, for whoever chooses the number of threads.
//
// Each thread has a stretch of the units and takes them in order, so that it reads a stream of memory, and what it fetches ahead
// is what it reads next. Who is through with its own takes what is left of the others'.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#define TURNOUT_PAUSE() _mm_pause()
#else
#define TURNOUT_PAUSE() std::this_thread::yield()
#endif

namespace turnout {

class Pool {
 public:
  static Pool& instance() {
    // Never destroyed: helpers may still look at it while the process ends.
    static Pool* pool = new Pool();
    return *pool;
  }

  void set_threads(int num_threads) {
    std::lock_guard<std::mutex> own(callers_);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      limit_.store(num_threads - 1);
    }
    back_.notify_all();
    while (static_cast<int>(helpers_.size()) < num_threads - 1) {
      int number = static_cast<int>(helpers_.size());
      helpers_.emplace_back([this, number] { help(number); });
      helpers_.back().detach();
    }
  }

  // Nanoseconds that callers have waited for a helper's unit, after what a spin lasts.
  int64_t waited_ns() const { return waited_ns_.load(std::memory_order_relaxed); }

  int num_threads() const { return std::max(0, limit_.load(std::memory_order_relaxed)) + 1; }

  // Calls work(unit) once for each unit in [0, num_units), on any of the threads; each thread's units mostly in order.
  template <class Work>
  void run(int64_t num_units, const Work& work) {
    std::unique_lock<std::mutex> own(callers_, std::try_to_lock);
    const int num_helpers = limit_.load(std::memory_order_relaxed);
    if (!own.owns_lock() || num_helpers <= 0 || num_units < 2) {
      for (int64_t unit = 0; unit < num_units; unit++) work(unit);
      return;
    }
    of_lot_.store(num_units / kMostLots + 1);
    num_units_.store(num_units);
    call_.store([](const void* context, int64_t unit) { (*static_cast<const Work*>(context))(unit); });
    context_.store(&work);
    done_.store(0);
    deal((num_units - 1) / of_lot_.load() + 1, num_helpers + 1);
    if (num_sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    take_units(0);
    for (int spin = 0; spin < kSpins; spin++) {
      if (done_.load(std::memory_order_acquire) >= num_units) return;
      TURNOUT_PAUSE();
    }
    wait(num_units);
  }

 private:
  using Call = void (*)(const void*, int64_t);
  static constexpr int kSpins = 2000;
  static constexpr int kMostStretches = 64;
  // As many as sixteen bits can say; where there are more units, a lot is several.
  static constexpr int64_t kMostLots = 0xffff;

  // The ticket is the generation of the job, the next lot and the end of the stretch in one word, so that a helper that comes late
  // cannot take a unit of a job that is over.
  struct alignas(64) Stretch {
    std::atomic<uint64_t> ticket{0};
  };

  // Gives each thread a stretch. The tickets are written last: whoever takes a lot by one finds the job that it belongs to.
  void deal(int64_t num_lots, int num_threads) {
    const int64_t num = std::min<int64_t>({num_threads, num_lots, kMostStretches});
    const uint64_t generation = generation_.load() + 1;
    num_stretches_.store(num);
    for (int64_t i = 0; i < num; i++) {
      const uint64_t first = num_lots * i / num, end = num_lots * (i + 1) / num;
      stretches_[i].ticket.store(generation << 32 | first << 16 | end);
    }
    generation_.store(generation);
  }

  // A helper that holds a unit may be off its processor; ours may be the one that it needs.
  void wait(int64_t num_units) {
    const auto began = std::chrono::steady_clock::now();
    while (done_.load(std::memory_order_acquire) < num_units) std::this_thread::yield();
    const auto waited = std::chrono::steady_clock::now() - began;
    waited_ns_.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count(), std::memory_order_relaxed);
  }

  // Those of the own stretch in order, then what others have left.
  void take_units(int64_t own) {
    const int64_t num = num_stretches_.load();
    for (int64_t i = 0; i < num; i++) take_units_of(stretches_[(own + i) % num].ticket);
  }

  void take_units_of(std::atomic<uint64_t>& ticket_of_stretch) {
    int64_t done = 0;
    for (uint64_t ticket = ticket_of_stretch.load();;) {
      const int64_t lot = ticket >> 16 & 0xffff, end = ticket & 0xffff;
      if (lot >= end) break;
      const Call call = call_.load();
      const void* context = context_.load();
      const int64_t first = lot * of_lot_.load(), last = std::min(first + of_lot_.load(), num_units_.load());
      // Success means that the job was not over while it was read: what was read belongs together.
      if (!ticket_of_stretch.compare_exchange_weak(ticket, ticket + (1 << 16))) continue;
      for (int64_t unit = first; unit < last; unit++) call(context, unit);
      done += last - first;
      ticket = ticket_of_stretch.load();
    }
    // Once a stretch: the count is what the threads write in turn.
    if (done) done_.fetch_add(done, std::memory_order_release);
  }

  void help(int number) {
    uint64_t seen = generation_.load();
    for (;;) {
      if (number >= limit_.load(std::memory_order_relaxed)) stay_away(number);
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_relaxed) == seen; spin++) TURNOUT_PAUSE();
      if (generation_.load() == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        num_sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        num_sleeping_.fetch_sub(1);
      }
      seen = generation_.load();
      if (number < limit_.load(std::memory_order_relaxed)) take_units(number + 1);
    }
  }

  // Those that are not wanted wait apart: no job wakes them.
  void stay_away(int number) {
    std::unique_lock<std::mutex> lock(sleep_);
    back_.wait(lock, [&] { return number < limit_.load(std::memory_order_relaxed); });
  }

  std::mutex callers_;
  std::vector<std::thread> helpers_;
  std::atomic<int> limit_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int64_t> num_units_{0}, of_lot_{1}, num_stretches_{0};
  // Of a job; helpers look at it for the next one.
  alignas(64) std::atomic<uint64_t> generation_{0};
  Stretch stretches_[kMostStretches];
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<int> num_sleeping_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::condition_variable back_;
  std::atomic<int64_t> waited_ns_{0};
};

}  // namespace turnout
