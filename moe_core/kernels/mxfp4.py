"""Weights in mxfp4: 32 four-bit floats along a row share a power of two.

w = e2m1 · 2^(exponent - 127). E2M1 has a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6. Two lie
in a byte, the even column in the low half. Exponents are e8m0 bytes.

Shapes: … any leading axes, W row length, B = W / 2 bytes of a row's codes, G = W / 32 groups of a row.
Source: Open Compute Project 2023, "OCP Microscaling Formats (MX)", sections 5.3 and 6.3; gpt-oss' released weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.errors import SpecError

GROUP = 32
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_BIAS = 127
# The exponent of E2M1's largest power of two.
_TOP_EXPONENT = 2


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """One weight in mxfp4."""

    # (…, B) uint8.
    codes: Tensor
    # (…, G) uint8.
    exponents: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands for."""
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

    def __getitem__(self, places: Tensor) -> Mxfp4:
        """Some of the first axis."""
        return Mxfp4(self.codes[places], self.exponents[places])


def quantise_mxfp4(weight: Tensor) -> Mxfp4:
    """Round a weight (…, W) to the nearest codes, ties to the even one, beyond 6 to 6; what is mxfp4 already stays exact.

    Raises SpecError where W is not a multiple of 32.
    """
    if weight.shape[-1] % GROUP:
        raise SpecError(f"rows of {weight.shape[-1]} weights are no multiple of {GROUP}, as mxfp4 needs")
    grouped = weight.float().unflatten(-1, (-1, GROUP))
    top = grouped.abs().amax(-1)
    exponent = torch.frexp(top).exponent - 1 - _TOP_EXPONENT
    exponent = torch.where(top > 0, exponent, 0).clamp(-E8M0_BIAS, E8M0_BIAS)
    scaled = torch.ldexp(grouped.abs(), -exponent[..., None])
    table = torch.tensor(E2M1, device=weight.device)
    middles = (table[1:] + table[:-1]) / 2
    lower, upper = torch.bucketize(scaled, middles), torch.bucketize(scaled, middles, right=True)
    code = torch.where(lower % 2 == 0, lower, upper) | (torch.signbit(grouped).long() << 3)
    flat = code.flatten(-2).to(torch.uint8)
    return Mxfp4(flat[..., 0::2] | (flat[..., 1::2] << 4), (exponent + E8M0_BIAS).to(torch.uint8))


def dequantise_mxfp4(weight: Mxfp4, dtype: torch.dtype) -> Tensor:
    """The weight (…, W) that codes and exponents stand for."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=weight.codes.device)
    pairs = (
        torch.stack([weight.codes & 0xF, weight.codes >> 4], dim=-1).flatten(-2).unflatten(-1, (-1, GROUP))
    )
    values = torch.ldexp(table[pairs.long()], (weight.exponents.int() - E8M0_BIAS)[..., None])
    return values.flatten(-2).to(dtype)
