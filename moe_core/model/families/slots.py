"""The map between tensors in a checkpoint and slices of the decoder's packed parameters.

One list serves both ways: reading fills slices, writing takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from moe_core.spec.weights import Part

__all__ = ["Fold", "Part", "Slot"]

# How a checkpoint lays out what the decoder packs as (E, 2F, D), (E, D, F) or (E, 2F):
# "transposed" swaps the last two axes; "gate" and "up" are the halves by themselves; the next three let gate and up
# alternate instead of standing one after the other, "columns" as the columns of a transposed map, "rows" as rows,
# "values" in a bias. The latent ones are the parts (H, r, n) and (H, e, r) of latent attention's map (H·(n + e), r).
# "flat" is a run of values of a flat parameter, whatever shape the tensor has.
Fold = Literal[
    "transposed", "gate", "up", "columns", "rows", "values", "flat", "latent keys", "latent values"
]


@dataclass(frozen=True, slots=True)
class Slot:
    """One checkpoint tensor and its place in the decoder."""

    # Name in the checkpoint.
    tensor: str
    # Name of the decoder's parameter.
    parameter: str
    shape: tuple[int, ...]
    part: Part
    # Expert number when the parameter is packed over experts.
    expert: int | None = None
    # Rows (start, stop) of the parameter, or of the expert's block, that this tensor fills; None means all.
    rows: tuple[int, int] | None = None
    layer: int | None = None
    # The only dtype that the tensor may have in the file (a safetensors name); None for any float.
    dtype: str | None = None
    fold: Fold | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """The slice of the parameter that the checkpoint's tensor fills, sharing memory.

        It is contiguous and of the slot's shape, unless the slot has a fold: then it is a view whose elements come in
        the order of the checkpoint's tensor.
        """
        block = parameter if self.expert is None else parameter[self.expert]
        block = block if self.rows is None else block[self.rows[0] : self.rows[1]]
        if self.fold in (None, "flat"):
            return block
        if self.fold == "transposed":
            return block.transpose(-1, -2)
        if self.fold in ("latent keys", "latent values"):
            return self._latent(block)
        experts, both = block.shape[:2]
        halves = block.view(experts, 2, both // 2, *block.shape[2:])
        if self.fold in ("gate", "up"):
            return halves[:, 0 if self.fold == "gate" else 1]
        return halves.permute(0, 3, 2, 1) if self.fold == "columns" else halves.transpose(1, 2)

    def _latent(self, block: Tensor) -> Tensor:
        heads = block.view(self.shape[0], -1, block.shape[-1])
        if self.fold == "latent keys":
            return heads[:, : self.shape[2]].transpose(1, 2)
        return heads[:, -self.shape[1] :]
