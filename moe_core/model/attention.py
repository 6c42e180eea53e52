"""Attention contexts that need no engine: full causal batches, and one growing sequence.

Shapes: B batch, S sequence, T = B·S tokens, Q queries, H query heads, G key-value heads, d head_dim, e width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import PromptTooLong
from moe_core.kernels.cpu import causal
from moe_core.kernels.precision import attention
from moe_core.model.context import AttentionRule
from moe_core.spec import ModelSpec

NEG_INF = float("-inf")


class DenseCausal:
    """Causal attention inside each of B sequences of equal length; keeps nothing. For training and evaluation."""

    keeps_latents = False

    def __init__(self, batch: int, sequence: int) -> None:
        self.batch = batch
        self.sequence = sequence

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, rule: AttentionRule) -> Tensor:
        """Attention over (B, S); the layer number does not matter here."""
        q, k, v = (
            x.view(self.batch, self.sequence, *x.shape[1:]).transpose(1, 2) for x in (q_THd, k_TGd, v_TGe)
        )
        out = attend_newest(q, k, v, rule)
        return out.transpose(1, 2).reshape(*q_THd.shape[:2], v_TGe.shape[2])


class GrowingSequence:
    """One sequence with its keys and values (or latents) kept in buffers of a fixed capacity."""

    keeps_latents = True

    def __init__(
        self, spec: ModelSpec, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        kept = spec.kept
        shape = (spec.num_hidden_layers, kept.num_heads, capacity)
        self.keys_LGCd = torch.empty(*shape, kept.key_dim, dtype=dtype, device=device)
        self.values_LGCe = torch.empty(*shape, kept.value_dim, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, rule: AttentionRule) -> Tensor:
        """Append the new keys and values of this layer, then attend to all of them."""
        start, end = self.length, self.length + q_THd.shape[0]
        if end > self.capacity:
            raise PromptTooLong(f"{end} tokens do not fit a cache of {self.capacity}")
        keys, values = self.keys_LGCd[layer], self.values_LGCe[layer]
        keys[:, start:end], values[:, start:end] = k_TGd.transpose(0, 1), v_TGe.transpose(0, 1)
        out = attend_newest(q_THd.transpose(0, 1)[None], keys[None, :, :end], values[None, :, :end], rule)
        return out[0].transpose(0, 1)

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of a finished forward pass."""
        self.length += num_tokens


def attend_newest(q_BHQd: Tensor, k_BGSd: Tensor, v_BGSe: Tensor, rule: AttentionRule) -> Tensor:
    """Attention of the newest Q of S tokens to what comes before them and to themselves: (B, H, Q, e)."""
    num_new, num_all = q_BHQd.shape[2], k_BGSd.shape[2]
    options = {"scale": rule.scale, "enable_gqa": q_BHQd.shape[1] != k_BGSd.shape[1]}
    if rule.is_plain and num_new == num_all:
        if causal.supports(q_BHQd, k_BGSd, v_BGSe):
            return causal.attend(q_BHQd, k_BGSd, v_BGSe, rule.scale)
        return attention(q_BHQd, k_BGSd, v_BGSe, is_causal=True, **options)
    if rule.is_plain and num_new == 1:
        return attention(q_BHQd, k_BGSd, v_BGSe, **options)
    mask_QS = hidden_from(num_all - num_new, num_all, rule.window, q_BHQd)
    if rule.sinks_H is not None:
        sinks_H11 = rule.sinks_H[:, None, None]
        mask_HQS, k_BGSd, v_BGSe = with_sinks(mask_QS[None], k_BGSd, v_BGSe, sinks_H11)
        return attention(q_BHQd, k_BGSd, v_BGSe, attn_mask=mask_HQS, **options)
    return attention(q_BHQd, k_BGSd, v_BGSe, attn_mask=mask_QS, **options)


def hidden_from(start: int, end: int, window: int | None, like: Tensor) -> Tensor:
    """(end - start, end) in the dtype of `like`: 0 where token start + i may look, -inf elsewhere."""
    position_Q1 = torch.arange(start, end, device=like.device)[:, None]
    position_S = torch.arange(end, device=like.device)
    hidden_QS = position_S > position_Q1
    if window is not None:
        hidden_QS |= position_S <= position_Q1 - window
    return torch.zeros(hidden_QS.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden_QS, NEG_INF)


def with_sinks(mask: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, keys and values with one more position: a key of zeros whose score is the sink's, and a value of zeros.

    `mask` (…, Q, S) must broadcast with `sinks` (…, 1, 1) but for its last axis.
    """
    shape = torch.broadcast_shapes(mask.shape[:-1], sinks.shape[:-1])
    column = sinks.to(mask.dtype).expand(*shape, 1)
    longer = torch.cat([mask.expand(*shape, mask.shape[-1]), column], dim=-1)
    return longer, torch.nn.functional.pad(k, (0, 0, 0, 1)), torch.nn.functional.pad(v, (0, 0, 0, 1))
