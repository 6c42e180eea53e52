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
from torch import Tensor, nn

from moe_core.engine.block_pool import BLOCK_TOKENS, NULL_BLOCK
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.scheduler import Chunk
from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts
from moe_core.kernels.cpu.attach import (
    DecodeLinear,
    PanelDenseMlp,
    PanelEmbedding,
    PanelExperts,
    PanelLinear,
    PanelPackedExperts,
    PanelPackedLinear,
)
from moe_core.kernels.cpu.native import Library, library
from moe_core.kernels.cpu.panels import ExpertPanels, Panels
from moe_core.kernels.cpu.plan import LayerPlan, ModelPlan, StepPlan
from moe_core.model.decoder import Block, Decoder
from moe_core.model.domain_prior import DomainPrior
from moe_core.model.heads import Attention
from moe_core.model.layers import DenseMlp, MoeMlp
from moe_core.model.rotary import rotary_of
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.attention import AttentionSpec
from moe_core.spec.gate import SoftmaxTopk

# Of weights that lie as rows: beyond it torch's products in tiles gain more than a step's operations cost.
MAX_ROWS = 32
IN_PANELS = (
    PanelDenseMlp,
    PanelEmbedding,
    PanelExperts,
    PanelLinear,
    PanelPackedExperts,
    PanelPackedLinear,
)
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
        num_positions = min(model.spec.max_position_embeddings, cache.num_blocks * BLOCK_TOKENS)
        self._rotary = rotary_of(model.spec, torch.arange(num_positions), torch.bfloat16)
        self._prior = None if prior is None or not prior.has_bias else prior.table_NLE.contiguous()
        self._any_number = _all_in_panels(model)
        layers = [_layer_plan(block, cache) for block in model.layers if isinstance(block, Block)]
        self._layers = (LayerPlan * len(layers))(*layers)
        spec = model.spec
        embedding, embedding_panels = _places(model.embed_tokens)
        head, head_panels = _places(model.embed_tokens if model.lm_head is None else model.lm_head)
        self._plan = ModelPlan(
            embedding,
            embedding_panels,
            model.norm.weight.data_ptr(),
            head,
            head_panels,
            self._rotary.cos_T1h.data_ptr(),
            self._rotary.sin_T1h.data_ptr(),
            ctypes.addressof(self._layers),
            len(layers),
            spec.hidden_size,
            spec.vocab_size,
            spec.num_attention_heads,
            spec.num_key_value_heads,
            spec.head_dim,
            BLOCK_TOKENS,
            spec.rms_norm_eps,
        )

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
        failed = self._native.step(ctypes.addressof(self._plan), ctypes.addressof(step))
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


def is_known(model: Decoder) -> bool:
    """Whether every part of a model is one that the native step computes, in bfloat16 on the CPU."""
    spec = model.spec
    tensors = [*model.parameters(), *model.buffers()]
    # Experts in panels keep parameters without memory; they are known by their class.
    held = [tensor for tensor in tensors if tensor.device.type != "meta"]
    return (
        model.dtype is torch.bfloat16
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in held)
        and _knows_attention(spec)
        and (spec.moe is None or _knows_mixture(spec.moe))
        and all(isinstance(block, Block) and _knows_block(block) for block in model.layers)
    )


def _all_in_panels(model: Decoder) -> bool:
    """Whether no map of a known model lies in rows."""
    maps: list[nn.Module] = [model.embed_tokens if model.lm_head is None else model.lm_head]
    for block in model.layers:
        assert isinstance(block, Block) and isinstance(block.attention, Attention)
        maps += [block.attention.qkv_proj, block.attention.o_proj]
        if isinstance(block.mlp, MoeMlp):
            maps += [
                block.mlp.experts,
                *([] if block.mlp.shared_expert is None else [block.mlp.shared_expert]),
            ]
        else:
            maps.append(block.mlp)
    return all(isinstance(module, IN_PANELS) for module in maps)


def _knows_attention(spec: ModelSpec) -> bool:
    plain = spec.attention in (AttentionSpec(), AttentionSpec(qk_norm="head"))
    whole = not spec.rope.interleaved and spec.rope.partial_rotary_factor == 1.0
    norms = not spec.parallel_blocks and not spec.zero_centred_norms
    return (
        plain
        and whole
        and norms
        and spec.activation == "silu"
        and not spec.expert_clamps
        and not spec.dense_clamps
    )


def _knows_mixture(moe: MoeSpec) -> bool:
    only_softmax = isinstance(moe.gate, SoftmaxTopk) and moe.capacity is None and moe.twins is None
    return only_softmax and not moe.expert_bias and moe.temperature_at() > 0.0


def _knows_block(block: Block) -> bool:
    """A block whose kernels are attached, with a feed-forward that they compute."""
    attention = block.attention
    maps = DecodeLinear | PanelLinear | PanelPackedLinear
    attached = isinstance(attention, Attention) and isinstance(attention.qkv_proj, maps)
    return attached and _knows_feed_forward(block.mlp)


def _knows_feed_forward(mlp: nn.Module) -> bool:
    if isinstance(mlp, DenseMlp):
        return True
    if not isinstance(mlp, MoeMlp) or set(mlp.router.tensors) != {"weight"} or mlp.moe.shared_gate:
        return False
    if isinstance(mlp.experts, PanelExperts | PanelPackedExperts):
        return True
    if not isinstance(mlp.experts, GroupedExperts):
        return False
    # Rows of bfloat16, where torch keeps the products of many rows.
    return mlp.moe.quantisation is None and mlp.experts.kernel is None


def _layer_plan(block: Block, cache: PagedKVCache) -> LayerPlan:
    attention, mlp = block.attention, block.mlp
    assert isinstance(attention, Attention) and block.mlp_norm is not None
    keys, values = cache.blocks(attention.layer)
    plan = LayerPlan(
        input_norm=block.input_norm.weight.data_ptr(),
        q_norm=_address(attention.q_norm),
        k_norm=_address(attention.k_norm),
        mlp_norm=block.mlp_norm.weight.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        temperature=1.0,
    )
    _tell(plan, ("qkv",), attention.qkv_proj)
    _tell(plan, ("o",), attention.o_proj)
    if isinstance(mlp, DenseMlp):
        _tell(plan, ("gate_up", "down"), mlp)
        plan.num_experts, plan.top_k, plan.num_ff = 1, 1, mlp.down_proj.weight.shape[1]
        return plan
    moe = mlp.moe
    plan.router, plan.moe_index = mlp.router.weight.data_ptr(), mlp.moe_index
    plan.num_experts, plan.top_k, plan.num_ff = moe.num_experts, moe.top_k, moe.moe_intermediate_size
    plan.renormalise, plan.temperature = moe.gate.sums_to_one(moe.norm_topk_prob), moe.temperature_at()
    _tell(plan, ("gate_up", "down"), mlp.experts)
    if mlp.shared_expert is not None:
        _tell(plan, ("shared_gate_up", "shared_down"), mlp.shared_expert)
        plan.shared_num_ff = mlp.shared_expert.down_proj.weight.shape[1]
    return plan


def _tell(plan: LayerPlan, names: tuple[str, ...], module: nn.Module) -> None:
    """Write where a module's weights lie, in panels or as rows, into the fields of those names."""
    panels: tuple[Panels, ...] = ()
    rows: tuple[Tensor, ...] = ()
    if isinstance(module, PanelLinear | PanelPackedLinear):
        panels = (module.panels,)
    elif isinstance(module, PanelDenseMlp | PanelExperts | PanelPackedExperts):
        experts: ExpertPanels = module.panels
        panels = (experts.gate_up, experts.down)
    elif isinstance(module, DenseMlp):
        rows = (module.gate_up_proj.weight, module.down_proj.weight)
    elif isinstance(module, GroupedExperts):
        rows = (module.gate_up_E2FD, module.down_EDF)
    else:
        rows = (module.get_parameter("weight"),)
    for name, own in zip(names, panels, strict=False):
        setattr(plan, f"{name}_panels", own.address)
    for name, weight in zip(names, rows, strict=False):
        setattr(plan, name, weight.data_ptr())


def _places(module: nn.Module) -> tuple[int | None, int | None]:
    """Where a single matrix lies: as rows, or in panels."""
    if isinstance(module, PanelEmbedding | PanelLinear | PanelPackedLinear):
        return None, module.panels.address
    return module.get_parameter("weight").data_ptr(), None


def _address(norm: nn.Module | None) -> int | None:
    return None if norm is None else norm.get_parameter("weight").data_ptr()
