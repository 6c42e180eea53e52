"""Pack the experts of an encoder–decoder in 8 or 4 bits, and widen them again.

Shapes: E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.experts import MixedExperts, PackedMlps
from moe_core.experts.packed_mlps import MAPS
from moe_core.model.seq2seq import EncoderDecoder
from moe_core.model.seq2seq.layers import SparseMlp
from moe_core.operations.packed_bytes import bytes_report, check_finite, lost_and_total
from moe_core.operations.parts import tensors_of
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec.operations import QuantiseSpec
from moe_core.spec.quantisation import ExpertQuantSpec

BIASES = {"up_bias_EF": "w3.bias", "down_bias_ED": "w2.bias"}


@torch.no_grad()
def quantise_seq2seq(
    model: EncoderDecoder, spec: QuantiseSpec, watch: Watch = unwatched
) -> tuple[EncoderDecoder, dict[str, Any]]:
    """The model with packed experts, and a report as `quantise` gives. Raises SpecError for a packed one."""
    if model.spec.quantisation is not None:
        raise SpecError.of("packed_experts", bits=model.spec.quantisation.bits)
    packed, errors = _with(model, spec.quantisation), []
    layers = list(zip(model.moe_layers(), packed.moe_layers(), strict=True))
    for old, new in layers:
        assert isinstance(old.experts, MixedExperts) and isinstance(new.experts, PackedMlps)
        for expert in range(old.experts.num_experts):
            for name, weight in _floats_of(old.experts, new.experts, expert).items():
                check_finite(weight, "expert_not_finite", name=name, expert=expert, layer=old.layer)
        errors.append({"layer": old.layer, **_pack(old.experts, new.experts)})
        watch("pack", len(errors), len(layers))
    weights = sum(new.experts.num_experts * _num_weights(new) for _, new in layers)
    report = bytes_report(packed, weights)
    return packed, {"kind": spec.kind, **spec.quantisation.model_dump(), "error": errors, **report}


@torch.no_grad()
def dequantise_seq2seq(model: EncoderDecoder) -> EncoderDecoder:
    """The model with the floats that its packed experts stand for; SpecError where they are not packed."""
    if model.spec.quantisation is None:
        raise SpecError.of("not_packed")
    wide = _with(model, None)
    for old, new in zip(model.moe_layers(), wide.moe_layers(), strict=True):
        assert isinstance(old.experts, PackedMlps) and isinstance(new.experts, MixedExperts)
        for expert in range(old.experts.num_experts):
            for name, target in _floats_of(new.experts, old.experts, expert).items():
                target.copy_(_widened(old.experts, name, expert, model.dtype))
    return wide


def _with(model: EncoderDecoder, quantisation: ExpertQuantSpec | None) -> EncoderDecoder:
    """The same model with other experts, which are for the caller to fill."""
    spec = model.spec.model_copy(update={"quantisation": quantisation})
    new = EncoderDecoder(spec, model.dtype).to(model.embed_tokens.weight.device)
    source = tensors_of(model)
    for name, tensor in tensors_of(new).items():
        if name in source:
            tensor.copy_(source[name])
    return new


def _pack(old: MixedExperts, new: PackedMlps) -> dict[str, float]:
    """Fill one layer; the relative error of each map."""
    sums = {name: [0.0, 0.0] for name in MAPS}
    for expert in range(old.num_experts):
        for name, value in _floats_of(old, new, expert).items():
            if name not in MAPS:
                getattr(new, name)[expert] = value
                continue
            new.pack_one(name, expert, value)
            lost, total = lost_and_total(value, _widened(new, name, expert, torch.float32))
            sums[name][0] += lost
            sums[name][1] += total
    return {name: (lost / total) ** 0.5 if total else 0.0 for name, (lost, total) in sums.items()}


def _floats_of(experts: MixedExperts, packed: PackedMlps, expert: int) -> dict[str, Tensor]:
    """One expert's tensors by the names that they have when packed, sharing memory."""
    own = experts.tensors(expert)
    maps = {name: own[f"{theirs}.weight"] for name, theirs in MAPS.items()}
    return maps | ({name: own[theirs] for name, theirs in BIASES.items()} if packed.expert.bias else {})


def _widened(packed: PackedMlps, name: str, expert: int, dtype: torch.dtype) -> Tensor:
    if name in MAPS:
        return packed.widened(name, torch.tensor([expert]), dtype)[0]
    bias: Tensor = getattr(packed, name)[expert]
    return bias


def _num_weights(layer: SparseMlp) -> int:
    assert isinstance(layer.experts, PackedMlps)
    return sum(rows * width for rows, width in layer.experts.shapes.values())
