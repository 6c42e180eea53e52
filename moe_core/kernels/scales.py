"""Which scale and zero point a group of weights gets, in torch; `cpu/src/quantise.h` does the same in registers.

In 8 bits the range decides. In 4 bits a code is a sixteenth of it, and the scale that leaves the least squared error is
looked for: between scales that make the largest weight code 6.8 to 9.4 (those beyond the last code are cut off), or, with
a zero point, between ranges whose ends are drawn in by up to 24 %; then least squares for the codes that were found. A
symmetric scale has the sign that makes the largest weight the code that lies furthest from zero. In super-groups the scales
that were found become whole times a common one (`moe_core.kernels.factors`).

Shapes: … any leading axes, G groups of a row, N weights of a group.
Source: the search over scales of llama.cpp's k-quants (`make_qx_quants`, Kawrakow 2023); the grids and their figures are in
docs/explanation/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.kernels.factors import MOST, common_scale, factors_of, grouped_scales
from moe_core.spec.quantisation import ExpertQuantSpec

TRIES, LEAST_TOP, TOP_STEP = 6, 6.8, 0.52
ENDS, END_STEP = 4, 0.08
REFINEMENTS = 1


@dataclass(slots=True)
class Fit:
    """The best so far of each group: (…, G) each; a scale of 0 where none did."""

    scale: Tensor
    zero: Tensor
    error: Tensor


def fitted(grouped: Tensor, spec: ExpertQuantSpec) -> tuple[Tensor, Tensor]:
    """Scales in float16 and zero points in float32, both (…, G), for float32 weights (…, G, N)."""
    low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
    top = float(2**spec.bits - 1)
    if spec.symmetric:
        zero = torch.full_like(low, 2.0 ** (spec.bits - 1))
        largest = torch.where(-low > high, low, high)
        if spec.bits == 8:
            return stored(largest.abs() / (zero - 1.0)), zero
        tries = [(-largest / (LEAST_TOP + TOP_STEP * i), zero) for i in range(TRIES)]
        scale, zero = _best(grouped, tries, top)
        return (scale if spec.super_group_size is None else _of_common(grouped, scale, zero, top, spec)), zero
    if spec.bits == 8:
        return _between(low, high, top)
    shares = [1.0 - END_STEP * i for i in range(ENDS)]
    return _best(grouped, [_between(low * a, high * b, top) for a in shares for b in shares], top)


def stored(scale: Tensor) -> Tensor:
    """The scale as it is kept: codes are found with it, not with a finer one."""
    most = torch.finfo(torch.float16).max
    return scale.clamp(-most, most).to(torch.float16)


def divisor(scale: Tensor) -> Tensor:
    """A group of zeros has a scale of 0 and codes of its zero point."""
    return torch.where(scale != 0, scale.float(), 1.0)


def _between(first: Tensor, last: Tensor, top: float) -> tuple[Tensor, Tensor]:
    scale = stored((last - first) / top)
    return scale, (-first / divisor(scale)).round_().clamp_(0, top)


def _best(grouped: Tensor, tries: list[tuple[Tensor, Tensor]], top: float) -> tuple[Tensor, Tensor]:
    best = Fit(torch.zeros_like(grouped[..., 0]), tries[0][1], torch.full_like(grouped[..., 0], torch.inf))
    for scale, zero in tries:
        _attempt(grouped, scale, zero, top, best)
    for _ in range(REFINEMENTS):
        codes = _codes(grouped, best.scale, best.zero, top)
        squares = codes.square().sum(-1)
        wanted = torch.where(squares > 0, (codes * grouped).sum(-1) / squares.clamp(min=1e-30), 0.0)
        _attempt(grouped, wanted, best.zero, top, best)
    return best.scale.to(torch.float16), best.zero


def _of_common(grouped: Tensor, scale: Tensor, zero: Tensor, top: float, spec: ExpertQuantSpec) -> Tensor:
    """Scales that are whole times a common one: the nearest, or the one beside it that leaves less squared error."""
    wanted = grouped_scales(scale.float(), spec)
    energy = _codes(grouped, scale, zero, top).square().sum(-1)
    common = common_scale(wanted, grouped_scales(energy, spec))[..., None]
    near = factors_of(wanted, common[..., 0])
    best = Fit(torch.zeros_like(zero), zero, torch.full_like(zero, torch.inf))
    for beside in (0, -1, 1):
        factor = torch.where(near > 0, (near + beside).clamp(1, MOST), 0.0)
        tried = (factor * common * wanted.sign()).flatten(-2)[..., : scale.shape[-1]]
        _attempt(grouped, tried, zero, top, best)
    return best.scale.to(torch.float16)


def _attempt(grouped: Tensor, wanted: Tensor, zero: Tensor, top: float, best: Fit) -> None:
    """Keep a scale, as it would be stored, where it leaves less squared error."""
    scale = stored(wanted).float()
    error = (grouped - _codes(grouped, scale, zero, top) * scale[..., None]).square().sum(-1)
    better = (error < best.error) & (scale != 0)
    best.scale = torch.where(better, scale, best.scale)
    best.zero = torch.where(better, zero, best.zero)
    best.error = torch.where(better, error, best.error)


def _codes(grouped: Tensor, scale: Tensor, zero: Tensor, top: float) -> Tensor:
    """Codes less their zero points."""
    low, high = -zero[..., None], (top - zero)[..., None]
    return (grouped / divisor(scale)[..., None]).round_().clamp_(low, high)
