"""The compiled library under each instruction set that this processor has, on one thread and on several."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
import torch

from moe_core.kernels.cpu.build import (
    FLAGS,
    SOURCES,
    X86_SETS,
    CompilerError,
    build,
    compiler,
    instruction_sets,
)
from moe_core.kernels.cpu.native import Library

SOFT_TILES = "tiles in software"


@pytest.fixture(scope="session")
def compiled() -> Library:
    try:
        return Library(build())
    except CompilerError as error:
        pytest.skip(f"the kernels cannot be compiled here: {error}")


@pytest.fixture(scope="session")
def tiled(compiled: Library, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The code for AMX with each instruction of tiles written out, for processors that have none."""
    path = tmp_path_factory.mktemp("tiles") / "tiles.so"
    best = instruction_sets()["avx512_bf16" if compiled.isa == "amx" else compiled.isa]
    flags = [*FLAGS, *best, "-DTURNOUT_ISA=generic", "-DTURNOUT_SOFT_TILES", "-DTURNOUT_ONE_SET", "-shared"]
    sources = [str(SOURCES / name) for name in ("ops.cpp", "abi.cpp")]
    subprocess.run([*compiler(), *flags, *sources, "-o", str(path)], check=True, capture_output=True)
    return Library(path)


@pytest.fixture(
    params=[*((isa, threads) for isa in X86_SETS for threads in (1, 3)), (SOFT_TILES, 1)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def kernels(request, compiled: Library, monkeypatch) -> Iterator[Library]:
    """The library, used by every module that asks for it, without gradients."""
    before = compiled.isa
    isa, num_threads = request.param
    used = request.getfixturevalue("tiled") if isa == SOFT_TILES else compiled
    if isa != SOFT_TILES and not compiled.use_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    used.set_threads(num_threads)
    asking = ("linear", "experts", "attention", "attach", "panels", "rounding", "training", "optimising", "causal")
    for module in asking:
        monkeypatch.setattr(f"moe_core.kernels.cpu.{module}.library", lambda: used)
    with torch.no_grad():
        yield used
    compiled.use_isa(before)
    used.set_threads(1)


def poisoned(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Random bfloat16 with NaN directly before and behind it: whatever reads past its end shows it."""
    number = 1
    for size in shape:
        number *= size
    around = torch.full((number + 64,), float("nan"), dtype=torch.bfloat16)
    inner = around[32 : 32 + number]
    inner.copy_(torch.randn(number, generator=torch.Generator().manual_seed(seed)) * scale)
    return inner.view(*shape)


def assert_close(found: torch.Tensor, truth: torch.Tensor, terms: int) -> None:
    """Within the rounding of one bfloat16 result and of float32 sums over `terms` products."""
    assert not found.isnan().any()
    error = (found.double() - truth).abs()
    allowed = truth.abs() * 2.0**-8 + terms * 2.0**-20 * truth.abs().max() + 1e-6
    assert (error <= allowed).all(), float((error - allowed).max())
