"""Runs the model on the chunks of one step.

Shapes: T tokens of the step, B chunks that end in a sample, D model width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Chunks

import torch
from torch import Tensor

from moe_core.engine.attention import StepAttention
from moe_core.engine.decode_graph import DecodeGraphs, records
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.engine.native_step import NativeStep
from moe_core.engine.residency import ResidentExperts
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.scheduler import Chunk
from moe_core.engine.step_costs import StepCosts
from moe_core.engine.thread_policy import StepThreads
from moe_core.kernels.cpu.attach import logits_of
from moe_core.kernels.cpu.linear import MAX_TOKENS
from moe_core.kernels.cpu.native import library
from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.domain_prior import DomainPrior
from moe_core.routers import Routing
from moe_core.routers.mapped import label_table
from moe_core.spec import RoutingSpec
from moe_core.spec.served import check_gate

Observer = Callable[[int, Routing], None]


class ModelRunner:
    """The model, its cache, the domain prior and the routing counts."""

    def __init__(
        self,
        model: Decoder,
        routing: RoutingSpec,
        *,
        num_blocks: int,
        max_batch_tokens: int,
        num_threads: int,
        residency: ResidentExperts | None = None,
    ) -> None:
        moe = model.spec.moe
        check_gate(model.spec)
        self.model = model
        self.device = model.device
        self.num_threads = num_threads
        self.cache = PagedKVCache(model.spec, num_blocks, model.dtype, self.device)
        if self.device.type == "cuda":
            # cuDNN plans anew for each length, 0.2 ms of the host's time a layer: a third of a decoding step.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.counts: RoutingCounts | None = None
        self.residency = residency
        if moe is not None:
            labels_NE = label_table(routing, moe)
            self.counts = RoutingCounts(moe, labels_NE, max_batch_tokens, self.device)
        self.prior: DomainPrior | None = None
        if moe is not None and routing.domains and routing.has_prior:
            self.prior = DomainPrior.from_routing(
                routing,
                num_moe_layers=len(moe.moe_layers),
                num_experts=moe.num_experts,
                top_k=moe.top_k,
                moe_layers=moe.moe_layers,
                twins=moe.twins,
                gate=moe.gate.kind,
            ).to(self.device)
        # Experts that come and go are seen to between a layer's router and its experts.
        is_whole = residency is None
        self.native = NativeStep.of(model, self.cache, self.counts, self.prior) if is_whole else None
        self.costs = StepCosts()
        kernels = library() if self.device.type == "cpu" and num_threads > 1 else None
        # None where there is nothing to choose.
        self.threads = None if kernels is None else StepThreads(kernels, num_threads, self.costs)
        self.graphs: DecodeGraphs | None = None
        if is_whole and records(model.spec, self.device):
            self.graphs = DecodeGraphs(self.cache, model.dtype, max_batch_tokens, self._decode)

    def run(self, chunks: Chunks[Chunk], *, counted: bool = True, one_by_one: bool = False) -> Tensor:
        """Float32 logits (B, V) of the chunks that want a sample, in their order; single tokens must come first.

        A chunk with guesses has one row more for each of them. With `one_by_one` no chunk's numbers depend on the others:
        kernels round by the number of rows that they see.
        """
        if one_by_one and len(chunks) > 1:
            # A step's logits are good until the next one.
            return torch.cat([self._run([chunk], counted).clone() for chunk in chunks])
        return self._run(chunks, counted)

    def likeliest(self, logits_BV: Tensor) -> Chunks[int] | None:
        """Of the last step's logits the likeliest token of each row, -1 where it is not finite; None where nobody looked."""
        native = self.native
        return native.likeliest_S if native is not None and native.logits_SV is logits_BV else None

    @property
    def decode_threads(self) -> int:
        """On how many threads the next decoding step runs."""
        return 1 if self.threads is None else self.threads.policy.threads

    @property
    def computes_alone(self) -> bool:
        """Whether each token of a decoding step, guessed ones too, is to the bit what it is in a step of its own."""
        return self.native is not None and self.native.any_number

    def _run(self, chunks: Chunks[Chunk], counted: bool) -> Tensor:
        is_trial = self.threads is not None and self.threads.is_trying
        began = time.perf_counter()
        logits_BV = self._step(chunks) if self.threads is None else self.threads.run(chunks, self._step)
        if not is_trial and all(chunk.is_decode for chunk in chunks):
            self.costs.note(sum(chunk.num_tokens for chunk in chunks), time.perf_counter() - began)
        # Guesses are counted when it is known which were right: by `count`.
        if self.counts is not None and not any(chunk.drafts for chunk in chunks):
            self.counts.end_of_step(chunks, counted=counted)
        return logits_BV

    def _step(self, chunks: Chunks[Chunk]) -> Tensor:
        # One native call makes no tensor that could want a gradient.
        if self.native is not None and self.native.takes(chunks):
            return self.native.run(chunks)
        return self._in_torch(chunks)

    @torch.inference_mode()
    def _in_torch(self, chunks: Chunks[Chunk]) -> Tensor:
        if self.counts is not None:
            self.counts.set_apart()
        if self.graphs is not None and self.graphs.takes(chunks):
            recorded_BV = self.graphs.run(chunks)
            if recorded_BV is not None:
                return recorded_BV
        ids: list[int] = []
        for chunk in chunks:
            ids += chunk.token_ids
        positions = [place for chunk in chunks for place in range(chunk.start, chunk.end)]
        # For few tokens a barrier costs more than it saves, and on a busy machine a scheduler's quantum; the decode
        # kernels have threads of their own that nobody waits for.
        torch.set_num_threads(1 if len(ids) <= MAX_TOKENS else self.num_threads)
        hidden_TD = self.model.hidden(
            torch.tensor(ids, device=self.device),
            torch.tensor(positions, device=self.device),
            StepAttention(self.cache, chunks, self.model.dtype),
            self.routing_context(chunks),
        )
        return logits_of(self.model, hidden_TD[self._sampled_rows(chunks)])

    def count(self, chunks: Chunks[Chunk]) -> None:
        """Count the tokens of the last step, whose guesses are settled by now."""
        if self.counts is not None:
            self.counts.end_of_step(chunks)

    def _decode(
        self, tokens_B: Tensor, positions_B: Tensor, attention: StepAttention, domains_B: Tensor
    ) -> Tensor:
        """A step of single tokens whose inputs are on the device."""
        context = None
        if self.counts is not None:
            domain_T = None if self.prior is None else domains_B
            context = RoutingContext(domain_T=domain_T, prior=self.prior, observe=self.counts.observe)
        hidden_BD = self.model.hidden(tokens_B, positions_B, attention, context)
        return logits_of(self.model, hidden_BD)

    def routing_context(self, chunks: Chunks[Chunk]) -> RoutingContext | None:
        """What the routers see and tell in this step; None for a dense model."""
        if self.counts is None:
            return None
        domain_T = None
        # Without a prior, and where no sequence has a domain, the routers need not look.
        if self.prior is not None and any(chunk.sequence.domain >= 0 for chunk in chunks):
            domain_T = torch.tensor(
                [chunk.sequence.domain for chunk in chunks for _ in range(chunk.num_tokens)],
                device=self.device,
            )
        return RoutingContext(domain_T=domain_T, prior=self.prior, observe=self.observer(self.counts.observe))

    def observer(self, note: Observer) -> Observer:
        """`note`, and before the experts run those that were chosen are in memory."""
        residency = self.residency
        if residency is None:
            return note

        def observe(layer: int, routing: Routing) -> None:
            note(layer, routing)
            residency.visit(layer, routing)

        return observe

    def _sampled_rows(self, chunks: Chunks[Chunk]) -> Tensor:
        rows: list[int] = []
        end = 0
        for chunk in chunks:
            end += chunk.num_tokens
            if chunk.wants_sample:
                rows += range(end - 1 - len(chunk.drafts), end)
        return torch.tensor(rows, dtype=torch.int64, device=self.device)
