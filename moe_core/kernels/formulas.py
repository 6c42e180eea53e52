"""Activations by their formulas, for the references of kernels: nothing here is shared with what is judged.

Source: Elfwing et al. 2018 (silu); Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", eq. 1 (gelu, the exact form);
So et al. 2021, "Primer" (relu2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """x / (1 + e⁻ˣ)."""
    return x / (1.0 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x."""
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def relu(x: Tensor) -> Tensor:
    """x where it is above zero, else zero; NaN stays NaN."""
    return torch.where(x <= 0, torch.zeros_like(x), x)


def relu2(x: Tensor) -> Tensor:
    """The square of relu."""
    return torch.where(x <= 0, torch.zeros_like(x), x * x)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu": gelu, "relu": relu, "relu2": relu2}
