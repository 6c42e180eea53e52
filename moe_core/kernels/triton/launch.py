"""Launches a product with the tile of the rule, or a narrower one where the compiler spills registers.

How many registers a kernel takes is the compiler's choice: it differs from one version of Triton to the next by a few,
and a tile that just fits in one spills in another. So the count of the compiled kernel decides, not a table of versions.
What was found is kept for each kernel, its constants, dtypes and device: counting takes one compilation, which the
launch needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

from moe_core.kernels.triton.chip import interpreted
from moe_core.kernels.triton.tiles import Tile

# What a tile makes of a product: the size of its grid, and the kernel's constants.
Lay = Callable[[Tile], tuple[int | tuple[int, int], Mapping[str, Any]]]
_found: dict[Hashable, Tile] = {}


def launch(kernel: Any, arguments: Sequence[Any], tile: Tile, lay: Lay) -> None:
    """Launch `kernel` with the widest tile, from `tile` on, for which nothing is spilt."""
    if not interpreted():
        _, constants = lay(tile)
        key = (kernel.__name__, tile, *constants.items(), *map(_kind, arguments))
        if (tile_found := _found.get(key)) is None:
            tile_found = _found[key] = settled(tile, lambda tried: _spills(kernel, arguments, tried, lay))
        tile = tile_found
    grid, constants = lay(tile)
    kernel[_grid(grid)](*arguments, **constants, num_warps=tile.num_warps, num_stages=tile.num_stages)


def settled(tile: Tile, spills: Callable[[Tile], int]) -> Tile:
    """The widest tile from `tile` on of which nothing is spilt; the one that spills least where all do."""
    best, least = tile, spills(tile)
    tried: Tile | None = tile
    while least and (tried := tried.narrower() if tried else None) is not None:
        if (count := spills(tried)) < least:
            best, least = tried, count
    return best


def _spills(kernel: Any, arguments: Sequence[Any], tile: Tile, lay: Lay) -> int:
    """Registers that the compiled kernel spills; compiled and loaded, not run."""
    grid, constants = lay(tile)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    compiled = kernel.run(*arguments, grid=_grid(grid), warmup=True, **constants, **options)
    # Only a loaded kernel knows what it spills.
    compiled._init_handles()
    return int(compiled.n_spills)


def _grid(grid: int | tuple[int, int]) -> tuple[int, ...]:
    return grid if isinstance(grid, tuple) else (grid,)


def _kind(argument: Any) -> Hashable:
    """What of an argument the machine code depends on: dtype and device, or whether a number is 1 or a multiple of 16."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.device
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0
    return type(argument).__name__
