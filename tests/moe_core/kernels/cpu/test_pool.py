"""Work that several threads share is done once, and callers at the same time do not wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import torch

from moe_core.kernels.cpu.build import build
from moe_core.kernels.cpu.native import Library
from tests.moe_core.kernels.cpu.conftest import poisoned


def test_callers_on_several_threads_get_their_own_results(compiled: Library) -> None:
    compiled.set_threads(3)
    weight_OK = poisoned(600, 64)
    inputs = [poisoned(2, 64, seed=seed) for seed in range(4)]
    wanted = [(x.double() @ weight_OK.double().T).float() for x in inputs]
    wrong: list[float] = []

    def call(number: int) -> None:
        out = torch.empty(2, 600)
        for _ in range(300):
            out.fill_(float("nan"))
            compiled.linear(weight_OK.data_ptr(), inputs[number].data_ptr(), out.data_ptr(), 1, 2, 600, 64)
            error = float((out - wanted[number]).abs().max())
            if not error < 1e-3:
                wrong.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    compiled.set_threads(1)
    assert wrong == []


def test_no_thread_at_all_is_the_callers_own(compiled: Library) -> None:
    compiled.set_threads(0)
    weight_OK, x_TK, out = poisoned(600, 64), poisoned(2, 64), torch.empty(2, 600)
    compiled.linear(weight_OK.data_ptr(), x_TK.data_ptr(), out.data_ptr(), 1, 2, 600, 64)
    compiled.set_threads(1)
    assert (out - (x_TK.double() @ weight_OK.double().T).float()).abs().max() < 1e-3


def test_building_again_finds_the_library() -> None:
    path = build()
    before = path.stat().st_mtime_ns
    assert build() == path
    assert path.stat().st_mtime_ns == before


def test_the_environment_can_leave_the_kernels_out() -> None:
    code = "from moe_core.kernels.cpu.native import library; print(library())"
    environment = {**os.environ, "TURNOUT_KERNELS": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "None"
