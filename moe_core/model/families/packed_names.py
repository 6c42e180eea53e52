"""Checkpoint names of a packed map: codes, scales and zero points, each a tensor of its own."""

from __future__ import annotations

from collections.abc import Iterator

from moe_core.kernels.packing import code_bytes, num_groups
from moe_core.model.families.slots import Part, Slot
from moe_core.spec.quantisation import ExpertQuantSpec


def packed_slots(
    there: str,
    here: str,
    shape: tuple[int, int],
    packing: ExpertQuantSpec,
    part: Part,
    *,
    expert: int | None = None,
    rows: tuple[int, int] | None = None,
    layer: int | None = None,
) -> Iterator[Slot]:
    """The tensors of a map of `shape` (rows, columns): `there`.codes into `here`_codes, and so on."""
    num_rows, length = shape
    kinds = [("codes", "U8", code_bytes), ("scales", "F16", num_groups)]
    kinds += [] if packing.symmetric else [("zeros", "U8", num_groups)]
    for kind, dtype, columns in kinds:
        both = (f"{there}.{kind}", f"{here}_{kind}")
        yield Slot(*both, (num_rows, columns(length, packing)), part, expert, rows, layer, dtype)
