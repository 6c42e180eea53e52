"""Causal attention over whole sequences while gradients are recorded: forward by torch, backward in tiles.

Shapes: B sequences, H query heads, G key-value heads, S tokens, d values of a head; bfloat16.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from moe_core.kernels.cpu.native import library


def supports(q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor) -> bool:
    """Whether a gradient of these is wanted and the compiled backward takes them."""
    whole = (q_BHSd, k_BGSd, v_BGSd)
    return (
        torch.is_grad_enabled()
        and any(x.requires_grad for x in whole)
        and all(x.dtype is torch.bfloat16 and x.device.type == "cpu" for x in whole)
        and k_BGSd.shape == v_BGSd.shape
        and q_BHSd.shape[::2] == k_BGSd.shape[::2]
        and q_BHSd.shape[3] == k_BGSd.shape[3]
        and not q_BHSd.shape[2] % 32
        and not q_BHSd.shape[3] % 32
        and q_BHSd.numel() > 0
        # Last: it loads the library, which tries tiles in a child process.
        and _multiplies_in_tiles()
    )


def attend(q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, scale: float | None) -> Tensor:
    """Every query sees the keys up to its own: (B, H, S, d). `scale` multiplies scores, 1/√d without one."""
    scale = 1.0 / math.sqrt(q_BHSd.shape[3]) if scale is None else scale
    out: Tensor = _Causal.apply(q_BHSd, k_BGSd, v_BGSd, scale)
    return out


class _Causal(torch.autograd.Function):
    """Keeps queries, keys and values; backward makes the shares of keys again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return _by_torch(q, k, v, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v = ctx.saved_tensors
        native = library()
        assert native is not None
        ins = [x.contiguous() for x in (q, k, v, grad)]
        outs = [torch.empty_like(x) for x in ins[:3]]
        places = [x.data_ptr() for x in (*ins, *outs)]
        batch, heads, sequence, width = q.shape
        if native.attention_back(*places, ctx.scale, batch, heads, k.shape[1], sequence, width):
            return *outs, None
        # The instruction set was changed since forward.
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            return *torch.autograd.grad(_by_torch(q, k, v, ctx.scale), (q, k, v), grad), None


def _multiplies_in_tiles() -> bool:
    native = library()
    return native is not None and native.isa == "amx"


def _by_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
