"""Every tensor of a model, counted from its specification: what is multiplied, what is added, what is looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_core.spec.expert_kinds import ExpertKind, flops_of
from moe_core.spec.model import ModelSpec, MoeSpec

Part = Literal["embedding", "attention", "router", "experts", "shared_experts", "dense_mlp", "norms", "head"]


@dataclass(frozen=True, slots=True)
class Weight:
    """Equal tensors of one part: linear maps (rows, length), or vectors, which have a length of 0."""

    part: Part
    rows: int
    length: int = 0
    # How many the model holds, and how many of them one token meets.
    count: int = 1
    active: int = 1

    @property
    def size(self) -> int:
        """Values of one of them."""
        return self.rows * (self.length or 1)


def weights_of(spec: ModelSpec) -> Iterator[Weight]:
    """Everything that the model holds; a tied head is not held twice."""
    yield Weight("embedding", spec.vocab_size, spec.hidden_size)
    for layer in range(spec.num_hidden_layers):
        norms = 1 if spec.parallel_blocks else 2
        yield Weight("norms", spec.hidden_size, count=norms, active=norms)
        yield from _latent(spec) if spec.attention.mla else _attention(spec, spec.num_heads_of(layer))
        if spec.moe is not None and spec.is_moe_layer(layer):
            yield from _moe(spec, spec.moe)
        else:
            yield from _mlp("dense_mlp", spec.hidden_size, spec.intermediate_size)
    yield Weight("norms", spec.hidden_size)
    if not spec.tie_word_embeddings:
        yield Weight("head", spec.vocab_size, spec.hidden_size)


def _attention(spec: ModelSpec, heads: int) -> Iterator[Weight]:
    kind, width = spec.attention, spec.hidden_size
    queries = heads * spec.head_dim
    keys = spec.num_key_value_heads * spec.head_dim
    yield Weight("attention", queries + 2 * keys, width)
    yield Weight("attention", width, queries)
    if kind.qkv_bias:
        yield Weight("attention", queries + 2 * keys)
    if kind.o_bias:
        yield Weight("attention", width)
    if kind.sinks:
        yield Weight("attention", heads)
    if kind.head_gate:
        yield Weight("attention", heads, width)
    if kind.qk_norm == "head":
        yield Weight("norms", spec.head_dim, count=2, active=2)
    if kind.qk_norm == "projection":
        yield Weight("norms", queries + keys)


def _latent(spec: ModelSpec) -> Iterator[Weight]:
    mla, width, heads = spec.attention.mla, spec.hidden_size, spec.num_attention_heads
    assert mla is not None
    queries = heads * spec.head_dim
    if mla.q_lora_rank is None:
        yield Weight("attention", queries, width)
    else:
        yield Weight("attention", mla.q_lora_rank, width)
        yield Weight("norms", mla.q_lora_rank)
        yield Weight("attention", queries, mla.q_lora_rank)
    yield Weight("attention", mla.kv_lora_rank + mla.qk_rope_head_dim, width)
    yield Weight("norms", mla.kv_lora_rank)
    yield Weight("attention", heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank)
    yield Weight("attention", width, heads * mla.v_head_dim)


def _moe(spec: ModelSpec, moe: MoeSpec) -> Iterator[Weight]:
    width, inner, experts, top_k = spec.hidden_size, moe.moe_intermediate_size, moe.num_experts, moe.top_k
    for tensor in moe.gate_tensors(width, spec.vocab_size):
        if len(tensor.shape) == 2 and not tensor.is_table:
            yield Weight("router", tensor.shape[0], tensor.shape[1])
        else:
            yield Weight("router", tensor.numel)
    if moe.expert_kinds is None:
        yield from _mlp("experts", width, inner, experts, top_k)
    else:
        yield from _kinds(moe.expert_kinds, width, top_k)
    if moe.expert_bias:
        yield Weight("experts", 2 * inner + width, count=experts, active=top_k)
    if moe.shared_intermediate_size:
        yield from _mlp("shared_experts", width, moe.shared_intermediate_size)
    if moe.shared_gate:
        yield Weight("shared_experts", 1, width)


def _kinds(kinds: tuple[ExpertKind, ...], width: int, top_k: int) -> Iterator[Weight]:
    """Experts of their own size each; a token is taken to meet the dearest ones, for which no more is ever needed."""
    dearest = sorted(range(len(kinds)), key=lambda expert: -flops_of(kinds[expert], width))[:top_k]
    for expert, kind in enumerate(kinds):
        for matrix in kind.matrices(width):
            yield Weight("experts", matrix.rows, matrix.length, active=int(expert in dearest))


def _mlp(part: Part, width: int, inner: int, count: int = 1, active: int = 1) -> Iterator[Weight]:
    yield Weight(part, 2 * inner, width, count, active)
    yield Weight(part, width, inner, count, active)
