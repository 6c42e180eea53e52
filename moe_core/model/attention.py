"""Attention contexts that need no engine: full causal batches, and one growing sequence.

Shapes: B batch, S sequence, T = B·S tokens, H query heads, G key-value heads, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import PromptTooLong
from moe_core.kernels.precision import attention
from moe_core.spec import ModelSpec


class DenseCausal:
    """Causal attention inside each of B sequences of equal length; keeps nothing. For training and evaluation."""

    def __init__(self, batch: int, sequence: int) -> None:
        self.batch = batch
        self.sequence = sequence

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> Tensor:
        """Attention over (B, S); the layer number does not matter here."""
        q, k, v = (
            x.view(self.batch, self.sequence, *x.shape[1:]).transpose(1, 2) for x in (q_THd, k_TGd, v_TGd)
        )
        out = attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).reshape(q_THd.shape)


class GrowingSequence:
    """One sequence with its keys and values kept in buffers of a fixed capacity."""

    def __init__(
        self, spec: ModelSpec, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (spec.num_hidden_layers, 2, spec.num_key_value_heads, capacity, spec.head_dim)
        self.buffer_L2GCd = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> Tensor:
        """Append the new keys and values of this layer, then attend to all of them."""
        start, end = self.length, self.length + q_THd.shape[0]
        if end > self.capacity:
            raise PromptTooLong(f"{end} tokens do not fit a cache of {self.capacity}")
        keys, values = self.buffer_L2GCd[layer]
        keys[:, start:end], values[:, start:end] = k_TGd.transpose(0, 1), v_TGd.transpose(0, 1)
        out_HTd = attention(
            q_THd.transpose(0, 1)[None],
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=_suffix_mask(start, end, q_THd.device) if start else None,
            is_causal=not start,
            enable_gqa=q_THd.shape[1] != keys.shape[0],
        )[0]
        return out_HTd.transpose(0, 1)

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of a finished forward pass."""
        self.length += num_tokens


def _suffix_mask(start: int, end: int, device: torch.device) -> Tensor | None:
    """(new, all) mask: each new position sees itself and what came before; None when there is one."""
    if end - start == 1:
        return None
    return torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)
