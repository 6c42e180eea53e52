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


def test_each_unit_of_each_job_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "pool.cpp").write_text(PROGRAM)
    try:
        build = [*compiler(), "-std=c++17", "-O2", "-pthread", f"-I{SOURCES}", str(tmp_path / "pool.cpp")]
    except CompilerError as error:
        pytest.skip(str(error))
    subprocess.run([*build, "-o", str(tmp_path / "pool")], check=True)
    assert subprocess.run([str(tmp_path / "pool")], check=False, timeout=120).returncode == 0
