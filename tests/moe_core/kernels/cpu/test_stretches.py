"""Each thread takes a stretch of a job's units in order; those of one that does not come are taken by the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.moe_core.kernels.cpu.test_late_helpers import PROGRAM, ran

IN_ORDER = """
#include "pool.h"
int main() {
  turnout::Pool& pool = turnout::Pool::instance();
  const auto caller = std::this_thread::get_id();
  constexpr int kUnits = 40;
  pool.set_threads(2);
  for (int round = 0, both = 0; both < 50; round++) {
    if (round == 100000) return 2;
    std::atomic<int> begun{0};
    bool met = false;
    std::vector<int64_t> units[2];
    pool.run(kUnits, [&](int64_t unit) {
      const bool helps = std::this_thread::get_id() != caller;
      if (units[helps].empty()) {
        // Neither is through before the other one begins, if it comes within some milliseconds.
        begun++;
        for (int turn = 0; turn < 10000 && begun < 2; turn++) std::this_thread::yield();
        if (!helps) met = begun == 2;
      }
      units[helps].push_back(unit);
    });
    if (units[0].front() != 0) return 3;
    if (!met) continue;
    both++;
    if (units[1].front() != kUnits / 2) return 4;
    // Those that were left by the other one come after one's own.
    for (int helps : {0, 1})
      for (size_t i = 1; i < units[helps].size(); i++) {
        const bool own = (units[helps][i] >= kUnits / 2) == (helps == 1);
        const bool before_own = (units[helps][i - 1] >= kUnits / 2) == (helps == 1);
        if (own == before_own ? units[helps][i] <= units[helps][i - 1] : own) return 5;
      }
  }
  return 0;
}
"""


def test_each_thread_takes_its_own_stretch_in_order_and_then_what_the_other_left(tmp_path: Path) -> None:
    assert ran(tmp_path, IN_ORDER) == 0


ALONE = """
#include <sys/wait.h>
#include <unistd.h>
#include "pool.h"
int main() {
  turnout::Pool& pool = turnout::Pool::instance();
  pool.set_threads(4);
  const pid_t child = fork();
  if (child == 0) {
    // Helpers do not come along, and nobody tells the pool.
    alarm(20);
    for (int64_t num_units = 1; num_units < 200; num_units++) {
      int64_t next = 0;
      pool.run(num_units, [&](int64_t unit) { next = unit == next ? next + 1 : -1; });
      if (next != num_units) _exit(1);
    }
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) return 2;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 3;
}
"""


def test_a_caller_whose_helpers_never_come_takes_all_units_in_order(tmp_path: Path) -> None:
    assert ran(tmp_path, ALONE) == 0


# About and beyond what sixteen bits can count.
MANY = """
#include "pool.h"
int main() {
  turnout::Pool& pool = turnout::Pool::instance();
  for (int threads : {2, 3, 70})
    for (int64_t num_units : {65534, 65535, 65536, 131069, 131070, 131071, 1000003}) {
      pool.set_threads(threads);
      std::vector<std::atomic<int>> times(num_units);
      pool.run(num_units, [&](int64_t unit) { times[unit]++; });
      for (const auto& one : times)
        if (one != 1) return 1;
    }
  return 0;
}
"""


def test_more_units_and_threads_than_there_are_tickets_for_are_done_once_each(tmp_path: Path) -> None:
    assert ran(tmp_path, MANY) == 0


# Three callers at once, of whom one has the helpers, while the number of threads changes and units now and then take long.
CALLERS = """
#include "pool.h"
int main() {
  turnout::Pool& pool = turnout::Pool::instance();
  std::atomic<bool> over{false};
  std::atomic<int> wrong{0};
  auto call = [&](unsigned seed) {
    for (int round = 0; round < 20000; round++) {
      seed = seed * 1664525u + 1013904223u;
      const int num_units = 1 + static_cast<int>(seed >> 24) % 9;
      // Not atomic: a unit that two threads do is a race, and one that is not seen at the end is too.
      int64_t sums[9] = {};
      pool.run(num_units, [&](int64_t unit) {
        if ((seed >> 16) % 1024 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
        sums[unit] += unit + round;
      });
      for (int unit = 0; unit < 9; unit++) wrong += sums[unit] != (unit < num_units ? unit + round : 0);
    }
  };
  std::thread changing([&] {
    for (int turn = 0; !over; turn++) {
      pool.set_threads(1 + turn % 4);
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  });
  std::vector<std::thread> callers;
  for (unsigned seed = 1; seed <= 3; seed++) callers.emplace_back(call, seed);
  for (auto& caller : callers) caller.join();
  over = true;
  changing.join();
  return wrong ? 1 : 0;
}
"""


def test_callers_at_the_same_time_get_each_unit_done_once(tmp_path: Path) -> None:
    assert ran(tmp_path, CALLERS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", [PROGRAM.replace("300000", "30000"), IN_ORDER, CALLERS], ids=["jobs", "order", "callers"])
def test_threads_race_for_nothing(tmp_path: Path, program: str) -> None:
    """What units write without a lock is seen by whoever called, under the thread sanitizer."""
    assert ran(tmp_path, program, "-fsanitize=thread", "-g1") == 0
