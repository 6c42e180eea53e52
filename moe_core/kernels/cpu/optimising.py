"""AdamW and the norm of a gradient, compiled: each in one pass over memory, which is what an optimiser waits for.

Contiguous tensors of N numbers on the CPU: weights and gradients in float32 or bfloat16, masters and moments in float32.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.kernels.cpu.native import library

_DTYPES = (torch.float32, torch.bfloat16)
# As `kNumbersOfUnit` in adamw.h: the sums of squares of so many numbers each come back.
UNIT = 16384
EPS = 1e-8


def supports(*tensors: Tensor) -> bool:
    """Whether the compiled passes take these, in the order of `adamw`, or a gradient alone.

    All contiguous, on the CPU and of one size; the first two in float32 or bfloat16, what follows in float32.
    """
    return (
        all(t.dtype in _DTYPES for t in tensors[:2])
        and all(t.dtype is torch.float32 for t in tensors[2:])
        and all(t.device.type == "cpu" and t.is_contiguous() and t.shape == tensors[0].shape for t in tensors)
        and library() is not None
    )


def adamw(
    whole: Sequence[Tensor],
    *,
    step: int,
    scale: float,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Step number `step` (from 1) with `scale` times the gradient; the working weight becomes the master, rounded.

    `whole` are the working weight, its gradient, master, average and average of squares.
    """
    native = library()
    assert native is not None
    rate, root = learning_rate / (1.0 - betas[0] ** step), math.sqrt(1.0 - betas[1] ** step)
    rests = (1.0 - betas[0], betas[1], 1.0 - betas[1])
    numbers = (scale, 1.0 - learning_rate * weight_decay, rate, root, *rests, EPS)
    working, gradient, master, average, square = whole
    ends = (working.data_ptr(), _is_float(working), gradient.data_ptr(), _is_float(gradient))
    kept = (part.data_ptr() for part in (master, average, square))
    native.adamw(*ends, *kept, (ctypes.c_float * len(numbers))(*numbers), master.numel())
    # Written behind autograd's back: a graph that kept one of these must find out.
    torch.autograd.graph.increment_version((working, master, average, square))


def norm(gradient: Tensor) -> float:
    """Euclidean norm; squares are added up in float32 within each stretch, and stretches exactly, then rounded once."""
    native = library()
    assert native is not None
    sums = torch.empty(-(-gradient.numel() // UNIT), dtype=torch.float64, device="cpu")
    native.squares(gradient.data_ptr(), _is_float(gradient), sums.data_ptr(), gradient.numel())
    # torch adds up in an order that depends on the number of its threads.
    return math.sqrt(math.fsum(sums.tolist()))


def _is_float(x: Tensor) -> int:
    return int(x.dtype is torch.float32)
