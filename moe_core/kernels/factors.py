"""Scales that are whole multiples, of one to fifteen, of one that a super-group of weights shares.

They are stored as plain float16, so that whoever reads groups of 32 reads these too: the common scale has seven significant
bits and a factor four, and their product is a float16 exactly. Integer kernels want the two apart.

Shapes: … any leading axes, G groups of a row, S super-groups of a row, N groups of a super-group.
Source: the two levels of QServe (Lin et al. 2024, arXiv 2405.04532), there with a scale for a whole row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.spec.quantisation import ExpertQuantSpec

MOST = 15
# Common scales that are tried: the largest scale becomes so many of them.
TOPS = tuple(MOST - i / 2 for i in range(16))
# So that fifteen of them are a float16.
_MOST_COMMON = 4096.0


def grouped_scales(scales: Tensor, spec: ExpertQuantSpec) -> Tensor:
    """(…, S, N) out of (…, G), the last super-group filled up with zeros."""
    assert spec.super_group_size is not None
    groups = spec.super_group_size // spec.group_size
    return torch.nn.functional.pad(scales, (0, -scales.shape[-1] % groups)).unflatten(-1, (-1, groups))


def split(scales: Tensor, spec: ExpertQuantSpec) -> tuple[Tensor, Tensor]:
    """Common scales (…, S) in float16 and signed factors (…, G) in int8 of scales (…, G).

    Raises SpecError for scales that have no common one of which they are at most fifteen times.
    """
    grouped = grouped_scales(scales.float(), spec)
    largest = grouped.abs().amax(-1)
    common = torch.zeros_like(largest)
    # The largest scale is one to fifteen times the common one: the first number that makes all the others whole too.
    for count in range(MOST, 0, -1):
        tried = largest / count
        factors = grouped / torch.where(tried > 0, tried, 1.0)[..., None]
        fits = (factors == factors.round()).all(-1) & (tried.half().float() == tried)
        common = torch.where(fits, tried, common)
    lost = ~(common > 0) & (largest > 0) | ~largest.isfinite()
    if bool(lost.any()):
        raise SpecError(
            f"{int(lost.sum())} super-groups of {spec.super_group_size} weights have scales that are not one to {MOST} "
            "times a common one: leave super_group_size out of the packing, or quantise the model anew"
        )
    factors = (grouped / torch.where(common > 0, common, 1.0)[..., None]).round_().to(torch.int8)
    return common.half(), factors.flatten(-2)[..., : scales.shape[-1]]


def common_scale(scales: Tensor, weight: Tensor) -> Tensor:
    """The common scale (…, S) of wanted scales (…, S, N), 0 for none.

    The one that leaves the least squared error times `weight`, (…, S, N).
    """
    largest, best = scales.abs().amax(-1), torch.zeros_like(scales[..., 0])
    least = torch.full_like(best, torch.inf)
    for top in TOPS:
        tried = seven_bits(largest / top)
        error = (weight * (scales.abs() - factors_of(scales, tried) * tried[..., None]).square()).sum(-1)
        better = (error < least) & (tried > 0)
        best, least = torch.where(better, tried, best), torch.where(better, error, least)
    return best


def factors_of(scales: Tensor, common: Tensor) -> Tensor:
    """Factors without their signs (…, S, N) that come nearest to scales, at least one of each that is not zero."""
    near = (scales.abs() / torch.where(common > 0, common, 1.0)[..., None]).round().clamp_(1, MOST)
    return torch.where((scales != 0) & (common > 0)[..., None], near, 0.0)


def seven_bits(scale: Tensor) -> Tensor:
    """Positive float32 rounded to seven significant bits, and to what float16 holds."""
    bits = scale.clamp(max=_MOST_COMMON).contiguous().view(torch.int32)
    return ((bits + (1 << 16)) & ~((1 << 17) - 1)).view(torch.float32).half().float()
