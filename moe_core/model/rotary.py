"""Rotary positions: tables of cos and sin, plain or stretched, and the turn of queries and keys.

Shapes: T tokens, H heads, d values of a head that turn, h = d/2 frequencies.
Source: Su et al. 2021, "RoFormer"; Peng et al. 2023, "YaRN", arXiv 2309.00071.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_core.kernels.cpu.training import supports, turn
from moe_core.spec import ModelSpec
from moe_core.spec.attention import RopeSpec


@dataclass(frozen=True, slots=True)
class Rotary:
    """cos and sin of every position and frequency, ready to broadcast over heads."""

    cos_T1h: Tensor
    sin_T1h: Tensor
    # Pairs (2i, 2i + 1) instead of (i, i + d/2).
    interleaved: bool = False
    # Of the layers that see a window, where theirs differ.
    sliding: Rotary | None = None

    def within(self, window: int | None) -> Rotary:
        """The tables of a layer that sees so many tokens, or (None) all."""
        return self if window is None or self.sliding is None else self.sliding

    def turn(self, x_THd: Tensor) -> Tensor:
        """Rotate every pair by its angle: (T, H, d), pairs apart by d/2 whichever way they came.

        Values of a head beyond the tables' pairs pass as they are.
        """
        turning = 2 * self.cos_T1h.shape[-1]
        if turning < x_THd.shape[-1]:
            return torch.cat([self._turned(x_THd[..., :turning]), x_THd[..., turning:]], dim=-1)
        return self._turned(x_THd)

    def _turned(self, x_THd: Tensor) -> Tensor:
        if self._is_learnt_compiled(x_THd):
            return turn(x_THd, self.cos_T1h, self.sin_T1h)
        if self.interleaved:
            low, high = x_THd[..., 0::2], x_THd[..., 1::2]
        else:
            low, high = x_THd.chunk(2, dim=-1)
        cos, sin = self.cos_T1h, self.sin_T1h
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    def _is_learnt_compiled(self, x_THd: Tensor) -> bool:
        """Whether gradients are recorded, and the compiled turn knows these tables and heads."""
        tables = (self.cos_T1h, self.sin_T1h)
        return (
            torch.is_grad_enabled()
            and not self.interleaved
            and (x_THd.dtype, x_THd.device) == (self.cos_T1h.dtype, self.cos_T1h.device)
            and (x_THd.ndim, x_THd.shape[0]) == (3, self.cos_T1h.shape[0])
            and supports(*tables)
        )


def rotary_of(spec: ModelSpec, positions_T: Tensor, dtype: torch.dtype) -> Rotary:
    """The tables of a model at the given positions, computed in float32 and kept in `dtype`."""
    own, sliding = spec.attention.sliding, None
    if own is not None:
        plain = RopeSpec(interleaved=spec.rope.interleaved)
        sliding = _tables(spec.sliding_rotary_dim, own.rope_theta, plain, positions_T, dtype)
    return replace(_tables(spec.rotary_dim, spec.rope_theta, spec.rope, positions_T, dtype), sliding=sliding)


def _tables(dim: int, theta: float, rope: RopeSpec, positions_T: Tensor, dtype: torch.dtype) -> Rotary:
    angles = positions_T.float()[:, None, None] * frequencies(dim, theta, rope, positions_T.device)
    factor = rope.cos_sin_factor
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return Rotary(cos.to(dtype), sin.to(dtype), rope.interleaved)


def frequencies(dim: int, theta: float, rope: RopeSpec, device: torch.device) -> Tensor:
    """Radians a position of each of the d/2 pairs, float32."""
    periods_h = theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    plain_h = 1.0 / periods_h
    if rope.kind == "plain":
        return plain_h
    if rope.kind == "llama3":
        return _stretched_by_turns(plain_h, rope)
    low, high = _ramp_ends(dim, theta, rope)
    ramp_h = ((torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)
    # Fast pairs keep their frequency, slow ones are stretched by the factor, those between are blended.
    kept_h = 1 - ramp_h
    return 1.0 / (rope.factor * periods_h) * (1 - kept_h) + plain_h * kept_h


def _stretched_by_turns(plain_h: Tensor, rope: RopeSpec) -> Tensor:
    """Slow pairs are stretched by the factor, fast ones kept, those between blended by how often they turn."""
    context = rope.original_max_position_embeddings
    assert context is not None
    low, high = rope.low_freq_factor, rope.high_freq_factor
    # In transformers' order of operations: another one moves logits by more than everything else that is rounded.
    turns_h = context / (2 * math.pi / plain_h)
    kept_h = ((turns_h - low) / (high - low)).clamp(0, 1)
    return (1 - kept_h) * plain_h / rope.factor + kept_h * plain_h


def _ramp_ends(dim: int, theta: float, rope: RopeSpec) -> tuple[float, float]:
    """Between which pairs the blend runs: those that turn beta_fast and beta_slow times in the original context."""
    context = rope.original_max_position_embeddings
    assert context is not None

    def pair_that_turns(times: float) -> float:
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high
