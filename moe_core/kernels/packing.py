"""Weights in 8 or 4 bits: groups along a row share a float16 scale and, when asymmetric, a zero point.

w ≈ (code - zero) · scale, codes unsigned, so that 0 is exact. Symmetric: zero is 2^(bits-1); in 4 bits a scale may be
negative, for there is one code more on one side of zero. Asymmetric: zero is a code of the group's own. 4-bit codes lie two
in a byte, the even column in the low half. The last group of a row may be shorter. Which scale and zero point:
`moe_core.kernels.scales`.

Shapes: … any leading axes, W row length, B = bytes of a row's codes, G = groups of a row.
Source: round to nearest as in Dettmers et al. 2022, "LLM.int8()", and Frantar et al. 2022, "GPTQ" (the grouping).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.kernels.cpu.rounding import round_into
from moe_core.kernels.scales import divisor, fitted
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
    """Round a weight (…, W) to codes; on one machine equal weights give equal bytes."""
    *leading, width = weight.shape
    per_group = (*leading, num_groups(width, spec))
    codes = weight.new_empty(*leading, code_bytes(width, spec), dtype=torch.uint8)
    scales = weight.new_empty(per_group, dtype=torch.float16)
    zeros = None if spec.symmetric else weight.new_empty(per_group, dtype=torch.uint8)
    if round_into(weight.reshape(-1, width), spec, codes, scales, zeros):
        return Packed(codes, scales, zeros)
    return quantise_torch(weight, spec)


def quantise_torch(weight: Tensor, spec: ExpertQuantSpec) -> Packed:
    """The same by torch's operations, on any device."""
    grouped = _grouped(weight.float(), spec)
    scale, zero = fitted(grouped, spec)
    code = (grouped / divisor(scale)[..., None]).round_().add_(zero[..., None]).clamp_(0, 2**spec.bits - 1)
    return Packed(
        _packed(code, weight.shape[-1], spec), scale, None if spec.symmetric else zero.to(torch.uint8)
    )


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
