"""The machine code for AMX, on processors that cannot run it: what is in it, and that nothing else is taken for it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter

import pytest

from moe_core.kernels.cpu.build import build
from moe_core.kernels.cpu.native import Library

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("objdump") is None,
    reason="looks at the machine code of x86 with objdump",
)
TILES = re.compile(r"\b(tdpbf16ps|tdpbsud|tileloadd|tilestored|ldtilecfg|sttilecfg|tilerelease)\b")


def test_the_library_holds_products_in_tiles_and_restores_what_it_found(compiled: Library) -> None:
    code = subprocess.run(["objdump", "-d", str(build())], capture_output=True, text=True, check=True).stdout
    found = Counter(TILES.findall(code))
    assert found["tdpbf16ps"] >= 4 and found["tdpbsud"] >= 4
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
