"""The machine code for AMX: what is in it on any processor; where tiles are, their bits and their manners towards others."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from moe_core.kernels.cpu import attention as asks_for_attention
from moe_core.kernels.cpu import panels as asks_for_kernels
from moe_core.kernels.cpu.attention import attend_prompt
from moe_core.kernels.cpu.build import SOURCES, build, compiler
from moe_core.kernels.cpu.native import Library
from moe_core.kernels.cpu.panels import Panels
from tests.moe_core.kernels.cpu.conftest import poisoned

DRIVER = Path(__file__).with_name("tiles.cpp")

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("objdump") is None,
    reason="looks at the machine code of x86 with objdump",
)
TILES = re.compile(r"\b(tdpbf16ps|tdpbssd|tileloadd|tilestored|ldtilecfg|sttilecfg|tilerelease)\b")


def test_the_library_holds_products_in_tiles_and_restores_what_it_found(compiled: Library) -> None:
    code = subprocess.run(["objdump", "-d", str(build())], capture_output=True, text=True, check=True).stdout
    found = Counter(TILES.findall(code))
    assert found["tdpbf16ps"] >= 4 and found["tdpbssd"]
    assert found["tileloadd"] and found["tilestored"]
    # Another library's configuration is read before ours is loaded, and loaded again behind it.
    assert found["sttilecfg"] and found["ldtilecfg"] >= 2 and found["tilerelease"]


def test_tiles_are_used_where_the_processor_has_them_and_only_there(compiled: Library) -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = set(re.search(r"^flags\s*:(.*)$", file.read(), re.MULTILINE)[1].split())  # type: ignore[index]
    has = {"amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni"} <= flags
    before = compiled.isa
    assert compiled.use_isa("amx") == has
    compiled.use_isa(before)


def test_the_trial_before_tiles_are_used_knows_right_from_wrong(compiled: Library, tiled: Library) -> None:
    assert tiled.tiles_work()
    assert compiled.tiles_work() == (compiled.isa == "amx")


@pytest.fixture
def with_tiles(compiled: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    if compiled.isa != "amx":
        pytest.skip("this processor has no tiles")
    monkeypatch.setattr(asks_for_kernels, "library", lambda: compiled)
    return compiled


@pytest.mark.parametrize(("num", "rows", "columns"), [(1, 33, 33), (13, 49, 576), (40, 130, 200)])
def test_the_instructions_give_the_bits_of_the_plain_code(
    with_tiles: Library, tiled: Library, monkeypatch, num: int, rows: int, columns: int
) -> None:
    """So what is tested in plain code, where no processor has tiles, holds where they are."""
    panels, x_TK = Panels.of_bfloat16(poisoned(1, rows, columns, seed=1)), poisoned(num, columns)
    found = panels.map(x_TK, torch.float32)
    monkeypatch.setattr(asks_for_kernels, "library", lambda: tiled)
    assert torch.equal(found, panels.map(x_TK, torch.float32))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("heads", "num_kv", "head_dim"), [(9, 3, 64), (5, 1, 40), (2, 2, 33)])
def test_the_instructions_attend_as_the_plain_code_does(
    with_tiles: Library, tiled: Library, monkeypatch, heads: int, num_kv: int, head_dim: int, window: int | None
) -> None:
    length = 300
    q_THd, blocks_M = poisoned(length, heads, head_dim, seed=1), torch.arange(19).flip(0)
    k_NPGd, v_NPGd = (poisoned(19, 16, num_kv, head_dim, seed=seed) for seed in (2, 3))
    found = []
    with torch.no_grad():
        for library in (with_tiles, tiled):
            monkeypatch.setattr(asks_for_attention, "library", lambda used=library: used)
            found.append(attend_prompt(q_THd, k_NPGd, v_NPGd, blocks_M, length, scale=0.2, window=window))
    assert torch.equal(*found)


def test_what_others_configured_comes_back_and_signals_and_forks_change_no_bit(
    with_tiles: Library, tmp_path: Path
) -> None:
    program = tmp_path / "tiles"
    built = [*compiler(), "-std=c++17", "-O2", f"-I{SOURCES}", str(DRIVER), "-o", str(program), "-ldl"]
    subprocess.run(built, check=True)
    ran = [str(program), str(build())]
    done = subprocess.run(ran, capture_output=True, text=True, timeout=60, check=True)
    none_before, given_back, child, signals = (told == "1" for told in done.stdout.split())
    assert none_before, "tiles stayed configured where nobody had them"
    assert given_back, "another configuration than before, or another answer beside it"
    assert child, "a forked child computed otherwise"
    assert signals, "a signal in the middle of a product changed its bits, or none arrived"


def test_torch_and_kernels_take_turns_with_tiles_on_several_threads(with_tiles: Library) -> None:
    """torch multiplies bfloat16 in tiles too, by way of oneDNN."""
    x_TK, weight_OK = poisoned(64, 256), poisoned(512, 256, seed=1)
    panels = Panels.of_bfloat16(weight_OK[None])
    by_kernels, by_torch = panels.map(x_TK, torch.float32), x_TK @ weight_OK.T
    wrong: list[str] = []

    def take_turns() -> None:
        for _ in range(100):
            if not torch.equal(panels.map(x_TK, torch.float32), by_kernels):
                wrong.append("kernels")
            if not torch.equal(x_TK @ weight_OK.T, by_torch):
                wrong.append("torch")

    threads = [threading.Thread(target=take_turns) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (by_kernels - by_torch.float()).abs().max() < 0.01 * by_kernels.abs().max()
