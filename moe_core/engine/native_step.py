"""A step in one native call: every layer, from the tokens to the logits, without a torch operation between.

Taken for every step, prompts included, of models whose every part the kernels know; other models go through the decoder in
torch. Both round at the same places. Where torch multiplies prompts in matrix tiles, only steps of a few single tokens are
taken.

Shapes: T tokens, B sequences, S sampled tokens, V vocabulary, E experts, K top_k, L expert layers, M blocks of the longest
sequence.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence as Chunks

import torch
from torch import Tensor

from moe_core.engine.block_pool import BLOCK_TOKENS, NULL_BLOCK
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.engine.native_plan import HeldPlan, all_in_panels, is_known
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.scheduler import Chunk
from moe_core.errors import SpecError
from moe_core.kernels.cpu.native import Library, library
from moe_core.kernels.cpu.plan import StepPlan
from moe_core.model.decoder import Decoder
from moe_core.model.domain_prior import DomainPrior

# Of weights that lie as rows: beyond it torch's products in tiles gain more than a step's operations cost.
MAX_ROWS = 32
FAILURES = {1: "a router named an expert that its layer has not", 2: "a token is outside the vocabulary"}


class NativeStep:
    """A model and its cache as the kernels see them."""

    def __init__(
        self,
        native: Library,
        model: Decoder,
        cache: PagedKVCache,
        counts: RoutingCounts | None,
        prior: DomainPrior | None,
    ) -> None:
        self._native, self._model, self._counts = native, model, counts
        self._vocab_size = model.spec.vocab_size
        self._prior = None if prior is None or not prior.has_bias else prior.table_NLE.contiguous()
        self._any_number = all_in_panels(model)
        self._held = HeldPlan.of(model, cache)

    @classmethod
    def of(
        cls,
        model: Decoder,
        cache: PagedKVCache,
        counts: RoutingCounts | None,
        prior: DomainPrior | None,
    ) -> NativeStep | None:
        """The step of a model that has its kernels attached, or None where some part of it needs torch."""
        native = library()
        if native is None or not is_known(model) or (prior is not None and prior.floor_NL is not None):
            return None
        return cls(native, model, cache, counts, prior)

    def takes(self, chunks: Chunks[Chunk]) -> bool:
        """Whether this step is one for the kernels: any of weights in panels, else few sequences with a token each."""
        if self._any_number:
            return True
        return len(chunks) <= MAX_ROWS and all(c.num_tokens == 1 and c.wants_sample for c in chunks)

    def run(self, chunks: Chunks[Chunk]) -> Tensor:
        """Float32 logits (S, V) of the tokens that are sampled; the experts taken are left with the counts.

        Chunks with a single token come first. Raises SpecError for a token outside the vocabulary.
        """
        numbers = _Numbers()
        sampled: list[int] = []
        for chunk in chunks:
            numbers.add(chunk, self._prior_row(chunk.sequence.domain))
            if chunk.wants_sample:
                sampled += range(numbers.num_tokens - 1 - len(chunk.drafts), numbers.num_tokens)
        columns = numbers.columns(sampled)
        logits_SV = torch.empty(len(sampled), self._vocab_size)
        step = self._step(columns, numbers, logits_SV)
        failed = self._native.step(self._held.address, ctypes.addressof(step))
        if failed:
            raise SpecError(FAILURES[failed])
        return logits_SV

    def _prior_row(self, domain: int) -> int:
        # Of no domain is the last row of the prior's table, which -1 does not find in C.
        return domain if domain >= 0 or self._prior is None else self._prior.shape[0] - 1

    def _step(self, columns: list[array[int]], numbers: _Numbers, logits_SV: Tensor) -> StepPlan:
        prior, counts = self._prior, self._counts
        return StepPlan(
            *(column.buffer_info()[0] for column in columns),
            None if prior is None else prior.data_ptr(),
            None if counts is None else counts.ids_LTK.data_ptr(),
            logits_SV.data_ptr(),
            numbers.num_tokens,
            len(numbers.lengths),
            numbers.longest,
            logits_SV.shape[0],
            0 if prior is None else prior.stride(0),
            0 if counts is None else counts.ids_LTK.stride(0),
        )


class _Numbers:
    """The whole numbers of a step, as `StepPlan` wants them."""

    def __init__(self) -> None:
        self._ids, self._positions, self._slots = array("q"), array("q"), array("q")
        self._prior_rows, self._firsts, self.lengths = array("q"), array("q", [0]), array("q")
        self._blocks: list[list[int]] = []

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return len(self._ids)

    @property
    def longest(self) -> int:
        """Blocks of the longest sequence."""
        return max(map(len, self._blocks))

    def add(self, chunk: Chunk, prior_row: int) -> None:
        """The tokens of one chunk, after those of all before it."""
        own = chunk.sequence.block_ids
        self._ids.extend(chunk.token_ids)
        self._positions.extend(range(chunk.start, chunk.end))
        for block in range(chunk.start // BLOCK_TOKENS, -(-chunk.end // BLOCK_TOKENS)):
            first = max(chunk.start - block * BLOCK_TOKENS, 0)
            end = min(chunk.end - block * BLOCK_TOKENS, BLOCK_TOKENS)
            self._slots.extend(range(own[block] * BLOCK_TOKENS + first, own[block] * BLOCK_TOKENS + end))
        self._prior_rows.extend([prior_row] * chunk.num_tokens)
        self._firsts.append(self.num_tokens)
        self.lengths.append(chunk.end)
        self._blocks.append(own)

    def columns(self, sampled: list[int]) -> list[array[int]]:
        """In the order of `StepPlan`."""
        tables, longest = array("q"), self.longest
        for own in self._blocks:
            tables.extend(own)
            tables.extend([NULL_BLOCK] * (longest - len(own)))
        # An address is wanted even of no number.
        wanted = array("q", sampled or [0])
        return [
            self._ids,
            self._positions,
            self._slots,
            self._prior_rows,
            self._firsts,
            self.lengths,
            tables,
            wanted,
        ]
