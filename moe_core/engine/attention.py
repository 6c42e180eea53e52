"""Attention of one mixed step: many sequences' newest tokens in one call, prompt chunks one after the other.

Shapes: T tokens of the step, B sequences with one new token, S padded length, C tokens of a chunk, H query heads,
G key-value heads, Q = H / G, d width of a key, e width of a value, M blocks of the longest sequence, P tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_core.engine.block_pool import BLOCK_TOKENS, NULL_BLOCK
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.engine.scheduler import Chunk
from moe_core.kernels.cpu import attention as native
from moe_core.kernels.precision import attention, has_tiles
from moe_core.model.attention import NEG_INF, attend_newest, with_sinks
from moe_core.model.context import AttentionRule


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sequences that bring one token each; they stand first in the step."""

    num_rows: int
    blocks_BM: Tensor
    # How many keys each row has, its own token included.
    lengths_B: Tensor
    # (B, 1, 1, S): 0 where a key is the row's own, -inf on padding.
    mask: Tensor

    def mask_within(self, window: int) -> Tensor:
        """The same where a row sees only the newest `window` of its keys."""
        position_S = torch.arange(self.mask.shape[-1], device=self.mask.device)
        too_old_BS = position_S < self.lengths_B[:, None] - window
        return self.mask.masked_fill(too_old_BS[:, None, None], NEG_INF)


@dataclass(frozen=True, slots=True)
class _Span:
    """A chunk of several tokens of one sequence, at [start, end) of the step."""

    start: int
    end: int
    blocks_M: Tensor
    # How many keys the newest token sees.
    length: int
    # (C, S): 0 where a token may look, -inf elsewhere; None when nothing comes before the chunk: then plain causal
    # attention does.
    mask: Tensor | None


class StepAttention:
    """The AttentionContext of one step; the chunks with a single token must come first."""

    keeps_latents = True

    def __init__(self, cache: PagedKVCache, chunks: Sequence[Chunk], dtype: torch.dtype) -> None:
        self._cache = cache
        self._slots_T = _slots(chunks, cache.device)
        rows = [chunk for chunk in chunks if chunk.num_tokens == 1]
        self._rows = _plan_rows(rows, dtype, cache.device) if rows else None
        self._spans: list[_Span] = []
        start = len(rows)
        for chunk in chunks[len(rows) :]:
            self._spans.append(_plan_span(chunk, start, dtype, cache.device))
            start += chunk.num_tokens

    @classmethod
    def of_rows(
        cls, cache: PagedKVCache, slots_B: Tensor, blocks_BM: Tensor, ends_B: Tensor, dtype: torch.dtype
    ) -> StepAttention:
        """A step of single tokens whose places are in tensors already: where each is stored, its blocks, its keys."""
        step = cls.__new__(cls)
        step._cache, step._slots_T, step._spans = cache, slots_B, []
        step._rows = _masked_rows(blocks_BM, ends_B, dtype)
        return step

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, rule: AttentionRule) -> Tensor:
        """Store the new keys and values, then attend each sequence to its own: (T, H, e)."""
        self._cache.write(layer, self._slots_T, k_TGd, v_TGe)
        if self._rows is not None and not self._spans:
            return self._attend_rows(layer, self._rows, q_THd, rule)
        out_THe = q_THd.new_empty(*q_THd.shape[:2], v_TGe.shape[2])
        if self._rows is not None:
            rows = slice(self._rows.num_rows)
            out_THe[rows] = self._attend_rows(layer, self._rows, q_THd[rows], rule)
        for span in self._spans:
            own = slice(span.start, span.end)
            out_THe[own] = self._attend_span(layer, span, q_THd[own], k_TGd[own], v_TGe[own], rule)
        return out_THe

    def _attend_rows(self, layer: int, rows: _Rows, q_BHd: Tensor, rule: AttentionRule) -> Tensor:
        keys, values = self._cache.blocks(layer)
        if native.supports(q_BHd, keys):
            return native.attend_rows(q_BHd, keys, values, rows.blocks_BM, rows.lengths_B, **_options(rule))
        num_rows, num_heads, head_dim = q_BHd.shape
        k_SGd, v_SGe = self._cache.gather(layer, rows.blocks_BM.view(-1))
        k = k_SGd.view(num_rows, -1, *k_SGd.shape[1:]).transpose(1, 2)
        v = v_SGe.view(num_rows, -1, *v_SGe.shape[1:]).transpose(1, 2)
        # The Q query heads of one key-value head stand in for query positions: nothing is repeated.
        q_BGQd = q_BHd.view(num_rows, k.shape[1], -1, head_dim)
        mask = rows.mask if rule.window is None else rows.mask_within(rule.window)
        if rule.sinks_H is not None:
            sinks_GQ1 = rule.sinks_H.view(1, k.shape[1], -1, 1)
            mask, k, v = with_sinks(mask, k, v, sinks_GQ1)
        out_BGQe = attention(q_BGQd, k, v, attn_mask=mask, scale=rule.scale)
        return out_BGQe.reshape(num_rows, num_heads, -1)

    def _attend_span(
        self, layer: int, span: _Span, q_CHd: Tensor, k_CGd: Tensor, v_CGe: Tensor, rule: AttentionRule
    ) -> Tensor:
        keys, values = self._cache.blocks(layer)
        if not has_tiles() and native.supports(q_CHd, keys):
            return native.attend_prompt(q_CHd, keys, values, span.blocks_M, span.length, **_options(rule))
        num_queries = q_CHd.shape[1] // k_CGd.shape[1]
        if span.mask is not None:
            k_SGd, v_SGe = self._cache.gather(layer, span.blocks_M)
            k_CGd, v_CGe = k_SGd[: span.mask.shape[1]], v_SGe[: span.mask.shape[1]]
        q, k, v = q_CHd.transpose(0, 1)[None], *(_repeat_heads(x, num_queries) for x in (k_CGd, v_CGe))
        if rule.is_plain and span.mask is not None:
            out = attention(q, k, v, attn_mask=span.mask, scale=rule.scale)
        else:
            out = attend_newest(q, k, v, rule)
        return out[0].transpose(0, 1)


def _options(rule: AttentionRule) -> dict[str, Any]:
    return {"scale": rule.scale, "window": rule.window, "sinks_H": rule.sinks_H}


def _repeat_heads(x_SGd: Tensor, num_queries: int) -> Tensor:
    """(S, G, d) to (1, H, S, d), each key-value head beside the query heads that share it."""
    return x_SGd.transpose(0, 1).repeat_interleave(num_queries, dim=0)[None]


def _slots(chunks: Sequence[Chunk], device: torch.device) -> Tensor:
    slots = [
        chunk.sequence.block_ids[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for chunk in chunks
        for position in range(chunk.start, chunk.end)
    ]
    return torch.tensor(slots, dtype=torch.int64, device=device)


def _plan_rows(rows: Sequence[Chunk], dtype: torch.dtype, device: torch.device) -> _Rows:
    num_blocks = max(len(row.sequence.block_ids) for row in rows)
    table = [
        [*row.sequence.block_ids, *[NULL_BLOCK] * (num_blocks - len(row.sequence.block_ids))] for row in rows
    ]
    ends_B = torch.tensor([row.end for row in rows], device=device)
    return _masked_rows(torch.tensor(table, dtype=torch.int64, device=device), ends_B, dtype)


def _masked_rows(blocks_BM: Tensor, ends_B: Tensor, dtype: torch.dtype) -> _Rows:
    num_rows, num_blocks = blocks_BM.shape
    hidden_BS = torch.arange(num_blocks * BLOCK_TOKENS, device=ends_B.device)[None] >= ends_B[:, None]
    mask_BS = torch.zeros(hidden_BS.shape, dtype=dtype, device=ends_B.device).masked_fill_(hidden_BS, NEG_INF)
    return _Rows(num_rows, blocks_BM, ends_B, mask_BS[:, None, None])


def _plan_span(chunk: Chunk, start: int, dtype: torch.dtype, device: torch.device) -> _Span:
    end = start + chunk.num_tokens
    num_blocks = -(-chunk.end // BLOCK_TOKENS)
    blocks_M = torch.tensor(chunk.sequence.block_ids[:num_blocks], dtype=torch.int64, device=device)
    if chunk.start == 0:
        return _Span(start, end, blocks_M, chunk.end, None)
    position_S = torch.arange(chunk.end, device=device)
    hidden_CS = position_S[None] > position_S[chunk.start :, None]
    mask_CS = torch.zeros(hidden_CS.shape, dtype=dtype, device=device).masked_fill_(hidden_CS, NEG_INF)
    return _Span(start, end, blocks_M, chunk.end, mask_CS)
