"""Which tile a grouped product takes: one rule in place of tuning files.

The rows of an expert are not known on the host (that would be a sync), so the rule looks at their expected number.
Few rows: the product reads each weight once whatever it does, so tiles are small in M, many blocks are in flight, and
the operands change sides, for Hopper's matrix unit wants 64 rows and the weight has them. Many rows: large tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from moe_core.kernels.triton.chip import Chip

# Every matrix instruction takes so many columns, of gate and of up where they come in pairs.
LEAST_COLUMNS = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """Block sizes and launch options of one product; `block_n` counts rows of the weight that a block multiplies."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    # The weight stands on the left: (W · Xᵀ)ᵀ.
    swap: bool = False
    # So many row tiles share one column tile of the weight before the next is read.
    group_m: int = 8

    def shared_bytes(self, element_size: int) -> int:
        """Operands of all stages in shared memory."""
        return self.num_stages * (self.block_m + self.block_n) * self.block_k * element_size

    def for_product(self, num_outer: int, num_inner: int) -> Tile:
        """The same rows with columns and steps that leave less of a weight's last tiles empty."""
        tile = self
        if tile.block_n == 256 and _padded(num_outer, 256) > 1.06 * _padded(num_outer, 128):
            tile = tile.halved()
        if tile.block_k == 128 and num_inner % 128 and num_inner % 64 == 0:
            tile = replace(tile, block_k=64)
        return tile

    def halved(self) -> Tile:
        """The same rows with half the columns; what that frees takes one more stage where columns were the longer side."""
        stages = self.num_stages + 1 if self.block_n > self.block_m else self.num_stages
        return replace(self, block_n=self.block_n // 2, num_stages=stages)

    def narrower(self) -> Tile | None:
        """What to take where the compiler ran out of registers for this tile; None where columns cannot be fewer."""
        return self.halved() if self.block_n >= 2 * LEAST_COLUMNS else None

    def fitted(self, chip: Chip, element_size: int) -> Tile:
        """The same with as many stages as the chip has shared memory for."""
        one = replace(self, num_stages=1).shared_bytes(element_size)
        # The epilogue's exchange of an accumulator in float32 uses the same memory after the loop.
        most = max(1, (chip.shared_bytes - 2048) // one)
        return replace(self, num_stages=min(self.num_stages, most))


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block


def rows_per_expert(num_rows: int, num_experts: int) -> float:
    """Expected rows of an expert that has any, were the load even."""
    return num_rows / max(1, min(num_rows, num_experts))


def product_tile(num_rows: int, num_experts: int, dtype: torch.dtype, chip: Chip) -> Tile:
    """The tile for rows times weights, for all products of one call: they share the map of row tiles."""
    rows = rows_per_expert(num_rows, num_experts)
    if dtype is torch.float32:
        # No matrix unit takes float32 exactly: plain multiply-adds, bounded by registers.
        return Tile(16 if rows <= 16 else 64, 64, 32, 4, 2).fitted(chip, 4)
    if rows <= 12:
        tile = Tile(16, 64, 128, 4, 4, swap=True)
    elif rows <= 20:
        # Of more rows on average so many experts have more than 32 that their weights are read twice.
        tile = Tile(32, 64, 128, 4, 4, swap=True)
    elif rows <= (48 if chip.has_wide_products else 128):
        tile = Tile(64, 128, 64, 4, 4)
    elif chip.has_wide_products:
        tile = Tile(128, 256, 64, 8, 4 if rows <= 160 else 3)
    else:
        tile = Tile(128, 128, 32, 8, 3)
    return tile.fitted(chip, 2)


def packed_tile(num_rows: int, num_experts: int, dtype: torch.dtype, chip: Chip) -> Tile:
    """The tile for rows times packed weights; `block_k` is how much of a row is loaded at once, in whole groups."""
    rows = rows_per_expert(num_rows, num_experts)
    if dtype is torch.float32:
        return Tile(16 if rows <= 16 else 32, 64, 64, 4, 2, swap=True)
    if rows <= 32:
        return Tile(
            16 if rows <= 16 else 32, 64, 256, 4, 3 if chip.shared_bytes > 64 * 1024 else 2, swap=True
        )
    # Codes are widened for each tile of rows: the more of them there are, the fewer should that be.
    return Tile(64 if rows <= 100 else 128, 128, 64, 4, 3 if chip.shared_bytes > 64 * 1024 else 2, swap=True)


def mxfp4_tile(num_rows: int, num_experts: int, dtype: torch.dtype, chip: Chip) -> Tile:
    """The tile for rows times weights in mxfp4, the weight on the left; steps are whole groups of 32."""
    rows = rows_per_expert(num_rows, num_experts)
    if dtype is torch.float32:
        return Tile(16 if rows <= 16 else 32, 64, 64, 4, 2, swap=True)
    stages = 3 if chip.shared_bytes > 64 * 1024 else 2
    if rows <= 32:
        return Tile(16 if rows <= 16 else 32, 128, 128, 4, stages, swap=True)
    return Tile(64, 128, 64 if not chip.has_block_scales else 128, 4, stages, swap=True)


def weight_gradient_tile(dtype: torch.dtype, chip: Chip) -> Tile:
    """The tile for the gradient of a weight: `block_m` of its rows, `block_n` of its columns, `block_k` tokens a step."""
    if dtype is torch.float32:
        return Tile(64, 64, 32, 4, 2).fitted(chip, 4)
    if chip.shared_bytes <= 128 * 1024:
        return Tile(64, 64, 32, 4, 2).fitted(chip, 2)
    return Tile(128, 256 if chip.has_wide_products else 128, 64, 8, 4).fitted(chip, 2)
