"""What a model costs before it is built: parameters, bytes and FLOPs, exactly as built."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from moe_core.spec.model import ModelSpec
from moe_core.spec.weights import Weight, weights_of

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
    weights = list(weights_of(spec))
    params: Counter[str] = Counter()
    for weight in weights:
        params[weight.part] += weight.size * weight.count
    # Two operations for each weight of a map that a token meets; the embedding is a look-up, the tied head is not.
    multiplied = sum(w.size * w.active for w in weights if w.length and w.part not in ("embedding", "head"))
    multiplied += spec.vocab_size * spec.hidden_size
    counts = ParamCounts(**{part: params[part] for part in ParamCounts.__slots__})
    return Cost(
        params=counts,
        total=counts.total,
        active_per_token=sum(weight.size * weight.active for weight in weights),
        bytes={precision: _bytes(weights, precision) for precision in ("fp32", "bf16", "int8", "int4")},
        kv_bytes_per_token=spec.num_hidden_layers * spec.kept.num_values * KV_BYTES_PER_VALUE,
        _flops_base=2 * multiplied + _sink_flops(spec),
        # Scores and the weighted sum: two operations for each value of a head and position.
        _flops_per_context_token=spec.num_hidden_layers * _flops_a_position(spec),
    )


def _flops_a_position(spec: ModelSpec) -> int:
    return 2 * spec.num_attention_heads * (spec.head_dim + spec.value_dim)


def _sink_flops(spec: ModelSpec) -> int:
    """A sink is computed as one more position."""
    return spec.num_hidden_layers * _flops_a_position(spec) if spec.attention.sinks else 0


def _bytes(weights: list[Weight], precision: Precision) -> int:
    """Bytes of all weights; int8 and int4 quantise the linear maps and leave the rest at 16 bits."""
    if precision in ("fp32", "bf16"):
        return sum(w.size * w.count for w in weights) * (4 if precision == "fp32" else 2)
    bits = 8 if precision == "int8" else 4
    return sum(
        w.count * (w.rows * _row_bytes(w.length, bits) if _is_quantised(w) else 2 * w.size) for w in weights
    )


def _is_quantised(weight: Weight) -> bool:
    return bool(weight.length) and weight.part not in ("embedding", "head", "router")


def _row_bytes(length: int, bits: int) -> int:
    groups = -(-length // QUANT_GROUP_SIZE)
    return -(-length * bits // 8) + groups * QUANT_SCALE_BYTES
