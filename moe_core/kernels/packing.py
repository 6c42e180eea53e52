"""Weights in 8 or 4 bits: groups along a row share a float16 scale and, when asymmetric, a zero point.

w ≈ (code - zero) · scale, codes unsigned. Symmetric: zero is 2^(bits-1), codes 1 to 2^bits - 1, so that 0 is exact and the
range is even. Asymmetric: zero is a code of the group's own, scale spans its range with 0 in it. 4-bit codes lie two in
a byte, the even column in the low half. The last group of a row may be shorter.

Shapes: … any leading axes, W row length, B = bytes of a row's codes, G = groups of a row.
Source: round to nearest as in Dettmers et al. 2022, "LLM.int8()", and Frantar et al. 2022, "GPTQ" (the grouping).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.spec.quantisation import ExpertQuantSpec


@dataclass(frozen=True, slots=True)
class Packed:
    """One quantised weight."""

    # (…, B) uint8.
    codes: Tensor
    # (…, G) float16.
    scales: Tensor
    # (…, G) uint8; None when symmetric.
    zeros: Tensor | None


def num_groups(width: int, spec: ExpertQuantSpec) -> int:
    """Groups of a row."""
    return -(-width // spec.group_size)


def code_bytes(width: int, spec: ExpertQuantSpec) -> int:
    """Bytes that the codes of a row take."""
    return -(-width * spec.bits // 8)


def quantise(weight: Tensor, spec: ExpertQuantSpec) -> Packed:
    """Round a weight (…, W) to the nearest codes; equal weights give equal bytes."""
    grouped = _grouped(weight.float(), spec)
    top = 2**spec.bits - 1
    if spec.symmetric:
        zero = torch.tensor(float(2 ** (spec.bits - 1)), device=weight.device)
        scale = _half(grouped.abs().amax(-1) / (top - zero))
        code = _codes(grouped, scale, zero).clamp_(1, top)
        return Packed(_packed(code, weight.shape[-1], spec), scale, None)
    low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
    scale = _half((high - low) / top)
    zero = (-low / _divisor(scale)).round_().clamp_(0, top)
    code = _codes(grouped, scale, zero[..., None]).clamp_(0, top)
    return Packed(_packed(code, weight.shape[-1], spec), scale, zero.to(torch.uint8))


def dequantise(packed: Packed, width: int, spec: ExpertQuantSpec, dtype: torch.dtype) -> Tensor:
    """The weight (…, W) that the codes stand for."""
    code = _unpacked(packed.codes, width, spec)
    zero = float(2 ** (spec.bits - 1)) if packed.zeros is None else _spread(packed.zeros.float(), width, spec)
    return ((code.float() - zero) * _spread(packed.scales.float(), width, spec)).to(dtype)


def _grouped(weight: Tensor, spec: ExpertQuantSpec) -> Tensor:
    """(…, G, group_size), the last group filled up with zeros."""
    groups = num_groups(weight.shape[-1], spec)
    padded = torch.nn.functional.pad(weight, (0, groups * spec.group_size - weight.shape[-1]))
    return padded.unflatten(-1, (groups, spec.group_size))


def _half(scale: Tensor) -> Tensor:
    """The scale as it is stored: codes are found with it, not with a finer one."""
    return scale.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)


def _divisor(scale: Tensor) -> Tensor:
    """A group of zeros has a scale of 0 and codes of its zero point."""
    return torch.where(scale > 0, scale.float(), 1.0)


def _codes(grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (grouped / _divisor(scale)[..., None]).round_().add_(zero)


def _packed(code: Tensor, width: int, spec: ExpertQuantSpec) -> Tensor:
    flat = code.flatten(-2)[..., :width].to(torch.uint8)
    if spec.bits == 8:
        return flat.contiguous()
    even = torch.nn.functional.pad(flat, (0, width % 2))
    return even[..., 0::2] | (even[..., 1::2] << 4)


def _unpacked(codes: Tensor, width: int, spec: ExpertQuantSpec) -> Tensor:
    if spec.bits == 8:
        return codes
    return torch.stack([codes & 0xF, codes >> 4], dim=-1).flatten(-2)[..., :width]


def _spread(per_group: Tensor, width: int, spec: ExpertQuantSpec) -> Tensor:
    """One value for each weight out of one for each group."""
    return per_group.repeat_interleave(spec.group_size, dim=-1)[..., :width]
