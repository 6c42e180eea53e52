"""A decoding step in one native call: every layer, from the tokens to the logits, without a torch operation between.

Taken for steps that bring one token for each sequence, in models whose every part the kernels know; all other steps and
models go through the decoder in torch. Both round at the same places.

Shapes: T tokens, B sequences, V vocabulary, E experts, K top_k, L expert layers, M blocks of the longest sequence.
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
from moe_core.kernels.cpu.library import Library, library
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

# Beyond it torch's blocked products of attention and head gain more than a step's operations cost.
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
        num_positions = min(model.spec.max_position_embeddings, cache.num_blocks * BLOCK_TOKENS)
        self._rotary = rotary_of(model.spec, torch.arange(num_positions), torch.bfloat16)
        self._prior = None if prior is None or not prior.has_bias else prior.table_NLE.contiguous()
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
        """Whether these chunks are a decoding step: one token each, whose logits are wanted, and not too many."""
        return len(chunks) <= MAX_ROWS and all(c.num_tokens == 1 and c.wants_sample for c in chunks)

    def run(self, chunks: Chunks[Chunk]) -> Tensor:
        """Float32 logits (B, V); the experts taken are left with the counts. Raises SpecError for a foreign token."""
        ends = [chunk.end for chunk in chunks]
        blocks = [chunk.sequence.block_ids for chunk in chunks]
        longest = max(map(len, blocks))
        numbers = array("q", [chunk.sequence.token_ids[chunk.start] for chunk in chunks])
        numbers.extend(end - 1 for end in ends)
        numbers.extend(
            own[(end - 1) // BLOCK_TOKENS] * BLOCK_TOKENS + (end - 1) % BLOCK_TOKENS
            for own, end in zip(blocks, ends, strict=True)
        )
        numbers.extend(ends)
        # Of no domain is the last row of the prior's table, which -1 does not find in C.
        last = 0 if self._prior is None else self._prior.shape[0] - 1
        domains = [chunk.sequence.domain for chunk in chunks]
        numbers.extend(domain if domain >= 0 else last for domain in domains)
        for own in blocks:
            numbers.extend(own)
            numbers.extend([NULL_BLOCK] * (longest - len(own)))
        logits_BV = torch.empty(len(chunks), self._vocab_size)
        step = self._step(numbers, len(chunks), longest, logits_BV)
        failed = self._native.step(ctypes.addressof(self._plan), ctypes.addressof(step))
        if failed:
            raise SpecError(FAILURES[failed])
        return logits_BV

    def _step(self, numbers: array[int], num_tokens: int, longest: int, logits_BV: Tensor) -> StepPlan:
        first, _ = numbers.buffer_info()
        ids, positions, slots, lengths, prior_row, tables = (
            first + column * num_tokens * numbers.itemsize for column in range(6)
        )
        prior, counts = self._prior, self._counts
        return StepPlan(
            ids,
            positions,
            slots,
            tables,
            lengths,
            None if prior is None else prior.data_ptr(),
            prior_row,
            None if counts is None else counts.ids_LTK.data_ptr(),
            logits_BV.data_ptr(),
            num_tokens,
            longest,
            0 if prior is None else prior.stride(0),
            0 if counts is None else counts.ids_LTK.stride(0),
        )


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
