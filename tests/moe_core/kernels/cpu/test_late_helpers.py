"""Threads that share the units of a job do each of them once, however late a helper comes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moe_core.kernels.cpu.build import SOURCES, CompilerError, compiler

PROGRAM = """
#include "pool.h"
int main() {
  turnout::Pool& pool = turnout::Pool::instance();
  pool.set_threads(3);
  unsigned seed = 1;
  for (long round = 0; round < 300000; round++) {
    if (round % 100 == 0) pool.set_threads(1 + round / 100 % 4);
    seed = seed * 1664525u + 1013904223u;
    int num_units = 2 + static_cast<int>(seed >> 28);
    std::atomic<int> times[32];
    for (auto& one : times) one = 0;
    pool.run(num_units, [&](int64_t unit) { times[unit].fetch_add(1); });
    for (int unit = 0; unit < 32; unit++)
      if (times[unit] != (unit < num_units)) return 1;
  }
  return 0;
}
"""


def ran(folder: Path, program: str, *flags: str) -> int:
    """The exit status of a program over the pool."""
    (folder / "pool.cpp").write_text(program)
    try:
        tool = compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    if "-fsanitize=thread" in flags and "ziglang" in tool:
        pytest.skip("the ziglang wheel has no thread sanitizer")
    build = [*tool, "-std=c++17", "-O2", "-pthread", *flags, f"-I{SOURCES}", str(folder / "pool.cpp")]
    subprocess.run([*build, "-o", str(folder / "pool")], check=True)
    return subprocess.run([str(folder / "pool")], check=False, timeout=120).returncode


def test_each_unit_of_each_job_is_done_once(tmp_path: Path) -> None:
    assert ran(tmp_path, PROGRAM) == 0


WAITING = """
#include "pool.h"
int main() {
  turnout::Pool& pool = turnout::Pool::instance();
  const auto caller = std::this_thread::get_id();
  std::atomic<int> helped{0};
  pool.set_threads(2);
  // A helper knows the jobs that come after its own beginning.
  while (!helped) pool.run(2, [&](int64_t) {
    if (std::this_thread::get_id() != caller) helped++;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  helped = 0;
  for (int threads : {2, 1, 2}) {
    pool.set_threads(threads);
    const auto before = pool.waited_ns();
    std::atomic<bool> begun{false};
    // The caller's unit lasts until a helper is in the middle of its own, for 20 ms.
    pool.run(2, [&](int64_t) {
      if (std::this_thread::get_id() != caller) {
        begun = true;
        helped++;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      } else if (threads == 2) {
        while (!begun) std::this_thread::yield();
      }
    });
    const double waited_ms = (pool.waited_ns() - before) / 1e6;
    if (threads == 1 ? waited_ms != 0.0 : waited_ms < 10.0) return 1;
  }
  return helped == 2 ? 0 : 2;
}
"""


def test_who_waits_for_a_helper_says_how_long_and_helpers_not_wanted_stay_away(tmp_path: Path) -> None:
    assert ran(tmp_path, WAITING) == 0
