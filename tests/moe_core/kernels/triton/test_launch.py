"""The compiler's count of spilt registers decides how wide a tile may be."""

from __future__ import annotations

import torch

from moe_core.kernels.triton import launch as launch_file
from moe_core.kernels.triton.launch import launch, settled
from moe_core.kernels.triton.tiles import LEAST_COLUMNS, Tile

WIDE = Tile(128, 256, 64, 8, 3)


class Kernel:
    """A kernel that spills with more columns than it has registers for, and notes how it is compiled and launched."""

    __name__ = "kernel"

    def __init__(self, most_columns: int) -> None:
        self.most_columns = most_columns
        self.compiled: list[int] = []
        self.launched: list[tuple[tuple[int, ...], int]] = []

    def run(self, *arguments, grid, warmup, columns, num_warps, num_stages):
        assert warmup
        self.compiled.append(columns)
        self.n_spills = max(0, columns - self.most_columns)
        return self

    def _init_handles(self) -> None:
        pass

    def __getitem__(self, grid):
        return lambda *arguments, columns, **options: self.launched.append((grid, columns))


def lay(tile: Tile) -> tuple[int, dict[str, int]]:
    return 1024 // tile.block_n, {"columns": tile.block_n}


def test_the_rules_tile_stays_where_nothing_spills() -> None:
    assert settled(WIDE, lambda tile: 0) == WIDE


def test_columns_are_halved_until_nothing_spills_and_rows_never() -> None:
    found = settled(WIDE, lambda tile: max(0, tile.block_n - 64))
    assert (found.block_m, found.block_n) == (128, 64)


def test_where_all_spill_the_least_is_taken() -> None:
    tried = []

    def spills(tile: Tile) -> int:
        tried.append(tile.block_n)
        return 7 if tile.block_n == 64 else 9

    assert settled(WIDE, spills).block_n == 64
    assert tried == [256, 128, 64, LEAST_COLUMNS]


def test_a_narrower_tile_needs_no_more_shared_memory() -> None:
    for tile in (WIDE, Tile(64, 128, 64, 4, 3), Tile(128, 128, 32, 8, 3), Tile(16, 64, 128, 4, 4)):
        narrower = tile.narrower()
        assert narrower is not None
        assert narrower.shared_bytes(2) <= tile.shared_bytes(2)


def test_a_kernel_is_counted_once_and_launched_with_what_was_found(monkeypatch) -> None:
    monkeypatch.setattr(launch_file, "interpreted", lambda: False)
    monkeypatch.setattr(launch_file, "_found", {})
    kernel = Kernel(most_columns=128)
    for _ in range(2):
        launch(kernel, (torch.zeros(2), 7), WIDE, lay)
    assert kernel.compiled == [256, 128]
    assert kernel.launched == [((8,), 128), ((8,), 128)]
    # Another dtype is another kernel.
    launch(kernel, (torch.zeros(2, dtype=torch.float16), 7), WIDE, lay)
    assert kernel.compiled == [256, 128, 256, 128]


def test_the_interpreter_has_no_registers_to_count() -> None:
    if not launch_file.interpreted():
        return
    kernel = Kernel(most_columns=0)
    launch(kernel, (), WIDE, lay)
    assert kernel.compiled == []
    assert kernel.launched == [((4,), 256)]
