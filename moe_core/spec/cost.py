"""What a model costs before it is built: parameters, bytes and FLOPs, exactly as built."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from moe_core.spec.model import ModelSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.weights import Part, Weight, weights_of

Precision = Literal["fp32", "bf16", "int8", "int4"]

# Beside the codes of a packed row each group keeps a float16 scale, and a zero point when asymmetric.
SCALE_BYTES, ZERO_BYTES = 2, 1
# Gates are float32 whatever the model's precision, expert numbers in a table too.
ROUTER_BYTES = 4
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
    # Of each layer, and how far it sees (None: all).
    _flops_per_position: tuple[int, ...]
    _windows: tuple[int | None, ...]

    def flops_per_token(self, context_tokens: int) -> int:
        """Floating-point operations for one token that attends to `context_tokens` positions, or a layer's window."""
        layers = zip(self._flops_per_position, self._windows, strict=True)
        return self._flops_base + sum(
            flops * (context_tokens if window is None else min(window, context_tokens))
            for flops, window in layers
        )

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
        bytes={precision: _bytes(spec, weights, precision) for precision in ("fp32", "bf16", "int8", "int4")},
        kv_bytes_per_token=spec.num_hidden_layers * spec.kept.num_values * KV_BYTES_PER_VALUE,
        _flops_base=2 * multiplied + _sink_flops(spec),
        # Scores and the weighted sum: two operations for each value of a head and position.
        _flops_per_position=_flops_per_position(spec),
        _windows=tuple(spec.attention.window_of(layer) for layer in range(spec.num_hidden_layers)),
    )


def _flops_per_position(spec: ModelSpec) -> tuple[int, ...]:
    heads = map(spec.num_heads_of, range(spec.num_hidden_layers))
    return tuple(2 * num_heads * (spec.head_dim + spec.value_dim) for num_heads in heads)


def _sink_flops(spec: ModelSpec) -> int:
    """A sink is computed as one more position."""
    return sum(_flops_per_position(spec)) if spec.attention.sinks else 0


def _bytes(spec: ModelSpec, weights: list[Weight], precision: Precision) -> int:
    """Bytes of all tensors as a saved model holds them.

    int8 and int4 are what `operations.quantise` makes of the model in bf16: the maps of the routed experts are packed, the
    rest stays as it is. A model that is packed already stays packed, and experts of different kinds are never packed.
    """
    packing = _packing(spec, precision)
    plain = 4 if precision == "fp32" else 2
    return sum(w.count * _bytes_of(w, plain, packing.get(w.part)) for w in weights)


def _packing(spec: ModelSpec, precision: Precision) -> dict[Part, ExpertQuantSpec]:
    """The parts whose maps are packed."""
    moe = spec.moe
    if moe is not None and moe.expert_kinds is not None:
        return {}
    if moe is None or moe.quantisation is None:
        packed = {"int8": ExpertQuantSpec(bits=8), "int4": ExpertQuantSpec(bits=4)}.get(precision)
        return {} if packed is None else {"experts": packed}
    packings: dict[Part, ExpertQuantSpec | None] = {
        "experts": moe.quantisation,
        "attention": moe.attention_quantisation,
        "head": moe.head_quantisation,
    }
    return {part: packing for part, packing in packings.items() if packing is not None}


def _bytes_of(weight: Weight, plain: int, packing: ExpertQuantSpec | None) -> int:
    if weight.part == "router":
        return weight.size * ROUTER_BYTES
    if packing is not None and weight.length:
        return weight.rows * _row_bytes(weight.length, packing)
    return weight.size * plain


def _row_bytes(length: int, packing: ExpertQuantSpec) -> int:
    groups = -(-length // packing.group_size)
    return -(-length * packing.bits // 8) + groups * (SCALE_BYTES + (0 if packing.symmetric else ZERO_BYTES))
