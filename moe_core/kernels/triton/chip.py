"""What a launch must know of the chip: its shared memory, its multiprocessors, and whether kernels are interpreted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from triton import knobs

# Bytes of shared memory that one block may have, by architecture: CUDA C++ programming guide, technical specifications;
# CDNA3 has 64 KiB of LDS. Triton does not check it before a launch.
SHARED_BYTES = {
    "sm80": 163 * 1024,
    "sm86": 99 * 1024,
    "sm89": 99 * 1024,
    "sm90": 227 * 1024,
    "sm100": 227 * 1024,
    "sm103": 227 * 1024,
    "sm120": 99 * 1024,
    "gfx942": 64 * 1024,
}
# For what is not in the table: what every supported chip has.
LEAST_SHARED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Chip:
    """One GPU as the tile choice sees it."""

    arch: str
    num_units: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of one block."""
        return SHARED_BYTES.get(self.arch, LEAST_SHARED_BYTES)

    @property
    def has_wide_products(self) -> bool:
        """Whether matrix products of 64 rows and more run on warp groups (Hopper) or in tensor memory (Blackwell)."""
        return self.arch in ("sm90", "sm100", "sm103")

    @property
    def has_block_scales(self) -> bool:
        """Whether the matrix unit takes 4- and 8-bit floats with a power of two for each group (Blackwell's data centre)."""
        return self.arch in ("sm100", "sm103")


@cache
def chip_of(device: torch.device) -> Chip:
    """The chip behind a device; under the interpreter a Hopper, whatever the tensors lie on."""
    if device.type != "cuda":
        return Chip("sm90", 132)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Chip(properties.gcnArchName.split(":")[0], properties.multi_processor_count)
    return Chip(f"sm{properties.major}{properties.minor}", properties.multi_processor_count)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


def dots_scaled() -> bool:
    """Whether `tl.dot_scaled` can be had: always when compiled, in the interpreter of newer versions only."""
    if not interpreted():
        return True
    from triton.runtime.interpreter import InterpreterBuilder

    return hasattr(InterpreterBuilder, "create_dot_scaled")


def upcasts(x: Tensor) -> bool:
    """Whether operands must be widened before a product: the interpreter's bfloat16 `tl.dot` is silently wrong."""
    return interpreted() and x.dtype is not torch.float32


def dot_precision(x: Tensor) -> str:
    """How float32 operands are multiplied: exactly, or in TF32 where torch was told that this is welcome."""
    return "tf32" if x.dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
