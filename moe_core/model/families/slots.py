"""The map between tensors in a checkpoint and slices of the decoder's packed parameters.

One list serves both ways: reading fills slices, writing takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# The parts of a model, as the cost model counts them.
Part = Literal["embedding", "attention", "router", "experts", "shared_experts", "dense_mlp", "norms", "head"]


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

    def of(self, parameter: Tensor) -> Tensor:
        """The slice of the parameter that the checkpoint's tensor fills; contiguous, sharing memory."""
        block = parameter if self.expert is None else parameter[self.expert]
        return block if self.rows is None else block[self.rows[0] : self.rows[1]]
