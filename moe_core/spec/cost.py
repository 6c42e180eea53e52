"""What a model costs before it is built: parameters, bytes and FLOPs, exactly as built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from moe_core.spec.model import ModelSpec, MoeSpec

Precision = Literal["fp32", "bf16", "int8", "int4"]

# Weights of int8 and int4 carry one fp16 scale for each group of this many values in a row.
QUANT_GROUP_SIZE = 128
QUANT_SCALE_BYTES = 2
KV_BYTES_PER_VALUE = 2


@dataclass(frozen=True, slots=True)
class ParamCounts:
    """Parameters by part of the model."""

    embedding: int
    attention: int
    router: int
    experts: int
    shared_experts: int
    dense_mlp: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        """All parameters; tied embeddings are counted once, under embedding."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Cost:
    """The price of one model: parameters, bytes at each precision, FLOPs and cache per token."""

    params: ParamCounts
    total: int
    active_per_token: int
    bytes: dict[str, int]
    kv_bytes_per_token: int
    _flops_base: int
    _flops_per_context_token: int

    def flops_per_token(self, context_tokens: int) -> int:
        """Floating-point operations for one token that attends to `context_tokens` positions."""
        return self._flops_base + self._flops_per_context_token * context_tokens

    def as_dict(self, context_tokens: int = 0) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "params": asdict(self.params),
            "total": self.total,
            "active_per_token": self.active_per_token,
            "bytes": dict(self.bytes),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "flops_per_token": self.flops_per_token(context_tokens),
            "context_tokens": context_tokens,
        }


def cost_of(spec: ModelSpec) -> Cost:
    """The exact cost of a model from its specification alone."""
    params = _params(spec)
    active = _active(spec, params)
    # Two operations for each weight that a token meets; the embedding is a look-up, the tied head is not.
    head_weights = spec.vocab_size * spec.hidden_size
    matmul_weights = active - params.embedding - params.norms - params.head + head_weights
    return Cost(
        params=params,
        total=params.total,
        active_per_token=active,
        bytes={precision: _bytes(spec, params, precision) for precision in ("fp32", "bf16", "int8", "int4")},
        kv_bytes_per_token=2
        * spec.num_hidden_layers
        * spec.num_key_value_heads
        * spec.head_dim
        * KV_BYTES_PER_VALUE,
        _flops_base=2 * matmul_weights,
        # Scores and the weighted sum: two multiply-adds for each head dimension and position.
        _flops_per_context_token=4 * spec.num_hidden_layers * spec.num_attention_heads * spec.head_dim,
    )


def _params(spec: ModelSpec) -> ParamCounts:
    width, moe = spec.hidden_size, spec.moe
    num_moe = len(moe.moe_layers) if moe else 0
    num_dense = spec.num_hidden_layers - num_moe
    heads = 2 * spec.num_attention_heads + 2 * spec.num_key_value_heads
    shared = moe.shared_intermediate_size or 0 if moe else 0
    return ParamCounts(
        embedding=spec.vocab_size * width,
        attention=spec.num_hidden_layers * width * heads * spec.head_dim,
        router=num_moe * _gate(spec, moe) if moe else 0,
        experts=num_moe * moe.num_experts * _mlp(width, moe.moe_intermediate_size) if moe else 0,
        shared_experts=num_moe * _mlp(width, shared),
        dense_mlp=num_dense * _mlp(width, spec.intermediate_size),
        norms=(2 * spec.num_hidden_layers + 1) * width,
        head=0 if spec.tie_word_embeddings else spec.vocab_size * width,
    )


def _gate(spec: ModelSpec, moe: MoeSpec) -> int:
    tensors = moe.gate_tensors(spec.hidden_size, spec.vocab_size)
    return sum(tensor.numel for tensor in tensors)


def _mlp(width: int, intermediate: int) -> int:
    return 3 * width * intermediate


def _active(spec: ModelSpec, params: ParamCounts) -> int:
    """Parameters that one token meets: everything but the experts that were not chosen."""
    if spec.moe is None:
        return params.total
    return params.total - params.experts + params.experts // spec.moe.num_experts * spec.moe.top_k


def _bytes(spec: ModelSpec, params: ParamCounts, precision: Precision) -> int:
    """Bytes of all weights; int8 and int4 quantise the linear maps and leave the rest at 16 bits."""
    if precision in ("fp32", "bf16"):
        return params.total * (4 if precision == "fp32" else 2)
    kept = params.embedding + params.head + params.norms + params.router
    bits = 8 if precision == "int8" else 4
    return 2 * kept + sum(rows * _row_bytes(length, bits) for rows, length in _quantised_rows(spec))


def _row_bytes(length: int, bits: int) -> int:
    groups = -(-length // QUANT_GROUP_SIZE)
    return -(-length * bits // 8) + groups * QUANT_SCALE_BYTES


def _quantised_rows(spec: ModelSpec) -> list[tuple[int, int]]:
    """(rows, row length) of each kind of linear map that int8 and int4 quantise."""
    width, layers, moe = spec.hidden_size, spec.num_hidden_layers, spec.moe
    num_moe = len(moe.moe_layers) if moe else 0
    q_rows = spec.num_attention_heads * spec.head_dim
    rows = [
        (layers * (q_rows + 2 * spec.num_key_value_heads * spec.head_dim), width),
        (layers * width, q_rows),
    ]
    mlps = [(layers - num_moe, spec.intermediate_size)]
    if moe:
        mlps.append((num_moe * moe.num_experts, moe.moe_intermediate_size))
        mlps.append((num_moe * moe.num_shared_experts, moe.shared_intermediate_size or 1))
    for count, intermediate in mlps:
        rows += [(count * 2 * intermediate, width), (count * width, intermediate)]
    return rows
