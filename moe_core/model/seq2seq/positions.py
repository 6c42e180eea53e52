"""Positions of an encoder–decoder: a bias by distance (T5), or sines added to the embedding (NLLB).

Shapes: B batch, S tokens, Q queries, N keys, H heads, D model width.
Source: Raffel et al. 2020, "T5", arXiv 1910.10683, section 2.1 (buckets as in Mesh TensorFlow); Vaswani et al. 2017 in the
form of tensor2tensor and fairseq (sines first, then cosines; the pad token has no position).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moe_core.errors import InputError
from moe_core.spec.seq2seq import Seq2SeqSpec


def buckets_of(distance_QN: Tensor, spec: Seq2SeqSpec, *, bidirectional: bool) -> Tensor:
    """(Q, N) int64: which bias a key has for a query, by key position minus query position.

    Half of the buckets are for single short distances, the others grow with the logarithm up to the maximal distance;
    encoders have half of all for each direction.
    """
    num_buckets, base = spec.relative_buckets, torch.zeros_like(distance_QN)
    if bidirectional:
        num_buckets //= 2
        base, distance_QN = (distance_QN > 0).long() * num_buckets, distance_QN.abs()
    else:
        distance_QN = (-distance_QN).clamp(min=0)
    exact = num_buckets // 2
    growth = (distance_QN.clamp(min=1).float() / exact).log() / math.log(spec.relative_max_distance / exact)
    far_QN = (exact + (growth * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return base + torch.where(distance_QN < exact, distance_QN, far_QN)


class RelativeBias(nn.Module):
    """One learnt number for each bucket and head, shared by all layers of a stack."""

    def __init__(self, spec: Seq2SeqSpec, dtype: torch.dtype, *, bidirectional: bool) -> None:
        super().__init__()
        self.spec, self.bidirectional = spec, bidirectional
        self.weight = nn.Parameter(torch.empty(spec.relative_buckets, spec.num_heads, dtype=dtype))

    def forward(self, start: int, num_queries: int) -> Tensor:
        """(H, Q, start + Q): the bias of queries from position `start` on for all keys up to the last of them."""
        keys_N = torch.arange(start + num_queries, device=self.weight.device)
        distance_QN = keys_N[None, :] - keys_N[start:, None]
        buckets_QN = buckets_of(distance_QN, self.spec, bidirectional=self.bidirectional)
        return self.weight[buckets_QN].permute(2, 0, 1)


def check_sines(num_tokens: int, spec: Seq2SeqSpec) -> None:
    """Raise InputError when a text is longer than there are sines for; distances have no end."""
    most = spec.max_position_embeddings
    if spec.positions == "sinusoidal" and num_tokens > most:
        raise InputError(
            f"{num_tokens} tokens are more than the model's {most} positions (max_position_embeddings); shorten the text, "
            "or give the model's spec more of them"
        )


def sines(ids_BS: Tensor, start: int, spec: Seq2SeqSpec, dtype: torch.dtype) -> Tensor:
    """(B, S, D) for tokens that come after `start` others; zeros for the pad token, which takes no position."""
    half = spec.hidden_size // 2
    rate_h = torch.exp(torch.arange(half, device=ids_BS.device).float() * -(math.log(10_000) / (half - 1)))
    is_real_BS = ids_BS != spec.pad_token_id
    # Counted from the pad token's number on, as fairseq does.
    position_BS = is_real_BS.cumsum(1) + start + spec.pad_token_id
    angle_BSh = position_BS[..., None].float() * rate_h
    table_BSD = torch.cat([angle_BSh.sin(), angle_BSh.cos()], dim=-1)
    return (table_BSD * is_real_BS[..., None]).to(dtype)
