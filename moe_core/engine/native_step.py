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

from moe_core.engine.kv_cache import PagedKVCache
from moe_core.engine.native_plan import HeldPlan, all_in_panels, is_known
from moe_core.engine.native_prior import NativePrior
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.scheduler import Chunk
from moe_core.engine.step_numbers import StepNumbers
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
        self._native, self._model = native, model
        self._vocab_size = model.spec.vocab_size
        # Either may be taken away, or put in another's place, between two steps.
        self.counts, self.prior = counts, NativePrior.of(prior)
        self.any_number = all_in_panels(model)
        self.held = HeldPlan.of(model, cache)
        self._plan_address = self.held.address
        self._make_room(0)

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
        if native is None or not is_known(model):
            return None
        return cls(native, model, cache, counts, prior)

    def takes(self, chunks: Chunks[Chunk]) -> bool:
        """Whether this step is one for the kernels: any of weights in panels, else few tokens of answers."""
        if self.any_number:
            return True
        return (
            all(chunk.is_decode for chunk in chunks) and sum(chunk.num_tokens for chunk in chunks) <= MAX_ROWS
        )

    def run(self, chunks: Chunks[Chunk]) -> Tensor:
        """Float32 logits (S, V) of the tokens that are sampled, good until the next step; the experts taken are left with
        the counts.

        Chunks with a single token come first. Raises SpecError for a token outside the vocabulary.
        """
        numbers, prior = StepNumbers(), self.prior
        for chunk in chunks:
            numbers.add(chunk, 0 if prior is None else prior.row(chunk.sequence.domain))
        if len(numbers.sampled) != len(self.likeliest_S):
            self._make_room(len(numbers.sampled))
        columns = numbers.columns()
        step = self._step(columns.buffer_info()[0], numbers)
        failed = self._native.step(self._plan_address, ctypes.addressof(step))
        if failed:
            raise SpecError(FAILURES[failed])
        # While they are in the cache.
        num_sampled, found = len(self.likeliest_S), self.likeliest_S.buffer_info()[0]
        self._native.largest(self._logits_address, num_sampled, self._vocab_size, found)
        return self.logits_SV

    def _make_room(self, num_sampled: int) -> None:
        """For so many samples, kept from one step to the next: fresh memory takes longer than what is done with it."""
        self.logits_SV = torch.empty(num_sampled, self._vocab_size)
        self._logits_address = self.logits_SV.data_ptr()
        # -1 where a row is not finite.
        self.likeliest_S = array("q", bytes(array("q").itemsize * num_sampled))

    def _step(self, columns: int, numbers: StepNumbers) -> StepPlan:
        counts, num_tokens = self.counts, len(numbers.ids)
        chosen, chosen_stride = (None, 0) if counts is None else counts.place_for(num_tokens)
        step = StepPlan(
            *numbers.addresses(columns),
            # The prior's tables follow.
            None,
            None,
            None,
            chosen,
            self._logits_address,
            num_tokens,
            len(numbers.lengths),
            numbers.longest,
            len(numbers.sampled),
            0,
            0,
            chosen_stride,
        )
        if self.prior is not None:
            self.prior.tell(step)
        return step
