"""What memory and arithmetic allow at best for one model: tokens a second, from bytes and products alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.limits import Limits
from moe_core.checkpoint.store import read_spec
from moe_core.spec import ModelSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.weights import weights_of


def active_weights(spec: ModelSpec) -> dict[str, float]:
    """Weights that one decoded token needs, by part; a tied head is a part of its own."""
    active: dict[str, float] = {"head": spec.vocab_size * spec.hidden_size}
    for weight in weights_of(spec):
        if weight.part not in ("embedding", "head"):
            active[weight.part] = active.get(weight.part, 0) + weight.size * weight.active
    return active


def bits_by_part(spec: ModelSpec) -> dict[str, float]:
    """Bits of a weight of each part that may be packed, its share of a scale included."""
    moe = spec.moe
    packings = {
        "experts": None if moe is None else moe.quantisation,
        "attention": None if moe is None else moe.attention_quantisation,
        "head": None if moe is None else moe.head_quantisation,
    }
    return {part: _bits(packing) for part, packing in packings.items()}


def active_bytes(path: Path) -> float:
    """Bytes of weights that one decoded token needs."""
    spec = _decoder(path)
    bits = bits_by_part(spec)
    return sum(count * bits.get(part, 16.0) / 8 for part, count in active_weights(spec).items())


def bounds(path: Path, limit: Limits) -> dict[str, float]:
    """Tokens a second that decoding cannot exceed for memory, nor a prompt for arithmetic."""
    spec = _decoder(path)
    bits = bits_by_part(spec)
    bf16 = limit.best_operations_s["bf16"]
    codes = limit.best_operations_s.get("int8", bf16)
    # The head is needed once for a whole prompt; attention between tokens is left out.
    seconds = sum(
        2 * count / (codes if bits.get(part, 16.0) < 16 else bf16)
        for part, count in active_weights(spec).items()
        if part != "head"
    )
    return {"decode 1": limit.best_read_gb_s * 1e9 / active_bytes(path), "prefill 512": 1 / seconds}


def _bits(packing: ExpertQuantSpec | None) -> float:
    """Of a weight as panels hold it: with a super-group's scale a group has a factor of a byte."""
    if packing is None:
        return 16.0
    if packing.super_group_size:
        return packing.bits + 8 / packing.group_size + 16 / packing.super_group_size
    return packing.bits + 16 / packing.group_size


def _decoder(path: Path) -> ModelSpec:
    spec = read_spec(path)
    assert isinstance(spec, ModelSpec)
    return spec
