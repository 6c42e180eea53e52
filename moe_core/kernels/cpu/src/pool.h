// Shares the units of one job between the calling thread and a few helpers.
//
// The caller never waits for a helper that has not begun: it takes units itself until none are left, and then waits
// only for units that a helper holds. On a busy machine, where a helper may not run for milliseconds, a job then costs
// what it costs on one thread, instead of a scheduler's quantum at a barrier. A helper that loses its processor in the middle
// of a unit does keep the caller waiting; how long in all is counted, for whoever chooses the number of threads.
#pragma once
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

  // Calls work(unit) once for each unit in [0, num_units), on any of the threads.
  template <class Work>
  void run(int64_t num_units, const Work& work) {
    std::unique_lock<std::mutex> own(callers_, std::try_to_lock);
    if (!own.owns_lock() || limit_.load(std::memory_order_relaxed) == 0 || num_units < 2) {
      for (int64_t unit = 0; unit < num_units; unit++) work(unit);
      return;
    }
    // The ticket is the generation of the job and the next unit in one word, so that a helper that comes late cannot take a
    // unit of a job that is over. While a job is written its generation is odd and has no units: whoever read the job
    // before finds its ticket changed, and nobody takes a unit of the next one by the ticket of the last.
    uint64_t generation = ((ticket_.load() >> 32) + 2) & 0xffffffffu;
    ticket_.store(((generation - 1) << 32) | 0xffffffffu);
    call_.store([](const void* context, int64_t unit) { (*static_cast<const Work*>(context))(unit); });
    context_.store(&work);
    num_units_.store(num_units);
    done_.store(0);
    ticket_.store(generation << 32);
    if (num_sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    take_units(generation);
    for (int spin = 0; spin < kSpins; spin++) {
      if (done_.load(std::memory_order_acquire) >= num_units) return;
      TURNOUT_PAUSE();
    }
    wait(num_units);
  }

 private:
  using Call = void (*)(const void*, int64_t);
  static constexpr int kSpins = 2000;

  // A helper that holds a unit may be off its processor; ours may be the one that it needs.
  void wait(int64_t num_units) {
    const auto began = std::chrono::steady_clock::now();
    while (done_.load(std::memory_order_acquire) < num_units) std::this_thread::yield();
    const auto waited = std::chrono::steady_clock::now() - began;
    waited_ns_.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count(), std::memory_order_relaxed);
  }

  void take_units(uint64_t generation) {
    uint64_t ticket = ticket_.load();
    while ((ticket >> 32) == generation) {
      int64_t unit = static_cast<int64_t>(ticket & 0xffffffffu);
      Call call = call_.load();
      const void* context = context_.load();
      if (unit >= num_units_.load()) return;
      // Success means that the generation did not change while the job was read: what was read belongs together.
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      call(context, unit);
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load();
    }
  }

  void help(int number) {
    uint64_t seen = ticket_.load() >> 32;
    for (;;) {
      if (number >= limit_.load(std::memory_order_relaxed)) stay_away(number);
      for (int spin = 0; spin < kSpins && (ticket_.load(std::memory_order_relaxed) >> 32) == seen; spin++) TURNOUT_PAUSE();
      if ((ticket_.load() >> 32) == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        num_sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return (ticket_.load() >> 32) != seen; });
        num_sleeping_.fetch_sub(1);
      }
      seen = ticket_.load() >> 32;
      if (number < limit_.load(std::memory_order_relaxed)) take_units(seen);
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
  std::atomic<int64_t> num_units_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<int> num_sleeping_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::condition_variable back_;
  std::atomic<int64_t> waited_ns_{0};
};

}  // namespace turnout
