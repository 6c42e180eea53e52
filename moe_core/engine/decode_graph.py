"""Decoding steps on a GPU as replays of a recorded graph: one upload and one launch in place of some thousand launches.

A step in which every sequence brings one token has the same shape as many others, once rows and blocks are filled up to
the next power of two. What differs lies in one buffer that the host writes before the replay.

Shapes: B rows of the recording, M blocks of the longest sequence, V vocabulary.
Source: the CUDA graphs of decoding in vLLM and nano-vllm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Chunks
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_core.engine.attention import StepAttention
from moe_core.engine.block_pool import BLOCK_TOKENS, NULL_BLOCK
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.engine.scheduler import Chunk
from moe_core.spec import ModelSpec

logger = logging.getLogger(__name__)

# Fewer blocks make recordings that differ in nothing that can be measured.
MIN_BLOCKS = 8
# Numbers of a row beside its blocks: token, position, slot, end, domain.
ROW_NUMBERS = 5
# Token ids, positions, attention, domains → float32 logits (B, V), all on the GPU, without asking the host.
Forward = Callable[[Tensor, Tensor, StepAttention, Tensor], Tensor]


def records(spec: ModelSpec, device: torch.device) -> bool:
    """Whether a model's decoding can be recorded: on a GPU, with gates and experts that never ask the host."""
    moe = spec.moe
    if device.type != "cuda" or not _knows_trunk(spec):
        return False
    if moe is None:
        return True
    plain = moe.capacity is None and moe.twins is None and moe.expert_kinds is None and not moe.expert_bias
    silu = spec.activation == "silu" and not (spec.expert_clamps or spec.dense_clamps)
    return plain and silu and moe.gate.kind in ("softmax_topk", "sigmoid_groups")


def _knows_trunk(spec: ModelSpec) -> bool:
    """Whether norms, positions and heads are those that recordings were compared with launches for."""
    whole = spec.rope.partial_rotary_factor == 1.0 and spec.attention.sliding is None
    return whole and not spec.zero_centred_norms and not spec.attention.head_gate


@dataclass(frozen=True, slots=True)
class _Recording:
    given: Tensor
    logits_BV: Tensor
    graph: torch.cuda.CUDAGraph


class DecodeGraphs:
    """Recordings by the number of rows and blocks, made when first needed."""

    def __init__(self, cache: PagedKVCache, dtype: torch.dtype, max_rows: int, forward: Forward) -> None:
        self._max_rows = max_rows
        self._cache, self._dtype, self._forward = cache, dtype, forward
        self._recordings: dict[tuple[int, int], _Recording] = {}
        # One memory for all recordings: a replay is over before the next begins.
        self._pool: Any = None
        self._works = True

    def takes(self, chunks: Chunks[Chunk]) -> bool:
        """Whether every sequence of a step brings one token and wants the next."""
        fits = self._works and _power_of_two(len(chunks)) <= self._max_rows
        return fits and all(chunk.num_tokens == 1 and chunk.wants_sample for chunk in chunks)

    def run(self, chunks: Chunks[Chunk]) -> Tensor | None:
        """Float32 logits (rows, V), good until the next run; None where recording is not possible after all."""
        num_rows = _power_of_two(len(chunks))
        num_blocks = _power_of_two(max(MIN_BLOCKS, *(len(chunk.sequence.block_ids) for chunk in chunks)))
        given = torch.tensor(_numbers(chunks, num_rows, num_blocks), dtype=torch.int64)
        recording = self._recordings.get((num_rows, num_blocks))
        if recording is None:
            recording = self._record(given.to(self._cache.device), num_rows)
            if recording is None:
                return None
            self._recordings[num_rows, num_blocks] = recording
        recording.given.copy_(given, non_blocking=True)
        recording.graph.replay()
        return recording.logits_BV[: len(chunks)]

    def _record(self, given: Tensor, num_rows: int) -> _Recording | None:
        tokens_B, positions_B, slots_B, ends_B, domains_B = given[: ROW_NUMBERS * num_rows].view(
            ROW_NUMBERS, -1
        )
        blocks_BM = given[ROW_NUMBERS * num_rows :].view(num_rows, -1)

        def step() -> Tensor:
            attention = StepAttention.of_rows(self._cache, slots_B, blocks_BM, ends_B, self._dtype)
            return self._forward(tokens_B, positions_B, attention, domains_B)

        # Once before the recording: kernels are compiled, and libraries set up, outside of it.
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                logits_BV = step()
        except RuntimeError as error:
            self._works = False
            logger.warning("decoding steps are not recorded, and launched one by one: %s", error)
            return None
        logger.info("recorded a decoding step of %d rows and %d blocks", num_rows, blocks_BM.shape[1])
        return _Recording(given, logits_BV, graph)


def _numbers(chunks: Chunks[Chunk], num_rows: int, num_blocks: int) -> list[int]:
    """What the recording reads, in one list; rows that fill up write to the null block and see one key."""
    spare = num_rows - len(chunks)
    tokens, positions, slots, ends, domains = [], [], [], [], []
    blocks: list[int] = []
    for chunk in chunks:
        sequence, position = chunk.sequence, chunk.start
        own = sequence.block_ids
        tokens.append(sequence.token_ids[position])
        positions.append(position)
        slots.append(own[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
        ends.append(chunk.end)
        domains.append(sequence.domain)
        blocks += [*own, *[NULL_BLOCK] * (num_blocks - len(own))]
    blocks += [NULL_BLOCK] * (spare * num_blocks)
    filled = ((tokens, 0), (positions, 0), (slots, NULL_BLOCK * BLOCK_TOKENS), (ends, 1), (domains, -1))
    return [number for numbers, filler in filled for number in [*numbers, *[filler] * spare]] + blocks


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
