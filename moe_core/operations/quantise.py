"""Pack the routed experts of a mixture in 8 or 4 bits, and count what that saves and costs.

Where wanted the maps around attention and the output map are packed too; a head that was tied to the embedding then gets a
matrix of its own, and the embedding stays as it is. Routers, shared experts, dense feed-forwards, norms and embeddings are
never packed, and the report says so tensor by tensor.

Shapes: E experts.
Source: round to nearest in groups; the formats are those of `moe_core.kernels.packing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, overload

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts, PackedExperts
from moe_core.experts.packed import MATRICES
from moe_core.model.decoder import Block, Decoder
from moe_core.model.families import family_for
from moe_core.model.heads import Attention
from moe_core.model.layers import MoeMlp
from moe_core.model.packed_linear import PackedLinear
from moe_core.model.seq2seq import EncoderDecoder
from moe_core.operations import packed_bytes
from moe_core.operations.level import level_all
from moe_core.operations.parts import check_spec, foretold, moe_part, rebuilt, tensors_of
from moe_core.operations.passes import compare
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.quantise_seq2seq import dequantise_seq2seq, quantise_seq2seq
from moe_core.operations.rotate import rotated
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec.operations import DequantiseSpec, QuantiseSpec

ATTENTION_MAPS = ("qkv_proj", "o_proj")


@overload
def quantise(
    model: Decoder, spec: QuantiseSpec, prompts: Prompts | None = None, watch: Watch = unwatched
) -> tuple[Decoder, dict[str, Any]]: ...


@overload
def quantise(
    model: EncoderDecoder, spec: QuantiseSpec, prompts: None = None, watch: Watch = unwatched
) -> tuple[EncoderDecoder, dict[str, Any]]: ...


@torch.no_grad()
def quantise(
    model: Decoder | EncoderDecoder,
    spec: QuantiseSpec,
    prompts: Prompts | None = None,
    watch: Watch = unwatched,
) -> tuple[Decoder | EncoderDecoder, dict[str, Any]]:
    """The model with packed experts; with prompts (decoders only) also KL and loss per domain.

    Raises SpecError for a model that is packed already, and for weights that are not finite.
    """
    check_spec(spec, QuantiseSpec)
    if isinstance(model, EncoderDecoder):
        if prompts is not None:
            raise SpecError("prompts are measured on decoders; quantise an encoder–decoder without them")
        if spec.rotate:
            raise SpecError.of("rotates_decoders")
        if spec.level:
            raise SpecError.of("levels_decoders")
        return quantise_seq2seq(model, spec, watch)
    check_prompts(prompts, or_none=True)
    # What cannot be is refused before anything is turned.
    foretold(model, spec)
    source = _prepared(model, spec)
    packed = pack(source, spec, watch)
    errors: list[dict[str, float]] = []
    for old, new in zip(source.moe_layers(), packed.moe_layers(), strict=True):
        assert isinstance(new.experts, PackedExperts)
        weights = _expert_weights(old)
        per_matrix = {name: relative_error(weights[name], new.experts, name) for name in MATRICES}
        errors.append({"layer": old.layer, **per_matrix})
    report = {
        "kind": spec.kind,
        **spec.quantisation.model_dump(),
        "level": spec.level,
        "rotate": spec.rotate,
        "error": errors,
        **_map_errors(source, packed),
    }
    report |= bytes_report(packed)
    if prompts is not None:
        report |= compare(model, packed, prompts, watch=watch)
    return packed, report


@torch.no_grad()
def pack(model: Decoder, spec: QuantiseSpec, watch: Watch = unwatched) -> Decoder:
    """The model with packed experts, and packed maps where wanted, without a report of what it cost.

    It is packed as it is: `rotate` and `level` are for `quantise`.
    Raises SpecError for a model that is packed already or has no experts, and for weights that are not finite.
    """
    packed = rebuilt(model, foretold(model, spec))
    moe = moe_part(model)
    for number, (old, new) in enumerate(zip(model.moe_layers(), packed.moe_layers(), strict=True), 1):
        assert isinstance(new.experts, PackedExperts)
        for name, weight in _expert_weights(old).items():
            packed_bytes.check_finite(weight, "experts_not_finite", name=name, layer=old.layer)
            new.experts.pack(name, weight)
        watch("pack", number, len(moe.moe_layers))
    for name, layer, weight, target in _maps(model, packed):
        sentence = "head_not_finite" if layer is None else "map_not_finite"
        packed_bytes.check_finite(weight, sentence, name=name, layer=layer)
        target.pack(weight)
    return packed


def _prepared(model: Decoder, spec: QuantiseSpec) -> Decoder:
    """The same function, rotated or levelled as asked; the model itself where neither is."""
    if spec.rotate:
        return rotated(model)
    if not spec.level:
        return model
    new = rebuilt(model, model.spec)
    level_all(new.moe_layers())
    return new


def _expert_weights(layer: MoeMlp) -> dict[str, Tensor]:
    assert isinstance(layer.experts, GroupedExperts)
    return {"gate_up": layer.experts.gate_up_E2FD, "down": layer.experts.down_EDF}


def _maps(model: Decoder, packed: Decoder) -> Iterator[tuple[str, int | None, Tensor, PackedLinear]]:
    """The packed maps of the trunk: each one's name and layer (the head has none), its weight, and where it goes."""
    for old, new in zip(model.layers, packed.layers, strict=True):
        assert isinstance(old, Block) and isinstance(new, Block)
        if not isinstance(new.attention, Attention) or not isinstance(old.attention, Attention):
            continue
        for name in ATTENTION_MAPS:
            target = new.attention.get_submodule(name)
            if isinstance(target, PackedLinear):
                weight = old.attention.get_submodule(name).get_parameter("weight")
                yield name, new.attention.layer, weight, target
    if isinstance(packed.lm_head, PackedLinear):
        yield "lm_head", None, model.head_weight_VD, packed.lm_head


def _map_errors(model: Decoder, packed: Decoder) -> dict[str, Any]:
    """What packing cost each map of the trunk that is packed."""
    layers: dict[int, dict[str, float]] = {}
    report: dict[str, Any] = {}
    for name, layer, weight, target in _maps(model, packed):
        wide = weight.float()
        error = float((target.widened(torch.float32) - wide).norm() / wide.norm().clamp(min=1e-30))
        if layer is None:
            report["head_error"] = error
        else:
            layers.setdefault(layer, {"layer": layer})[name] = error
    return report | ({"attention_error": list(layers.values())} if layers else {})


@overload
def dequantise(model: Decoder, spec: DequantiseSpec) -> tuple[Decoder, dict[str, Any]]: ...


@overload
def dequantise(model: EncoderDecoder, spec: DequantiseSpec) -> tuple[EncoderDecoder, dict[str, Any]]: ...


@torch.no_grad()
def dequantise(
    model: Decoder | EncoderDecoder, spec: DequantiseSpec
) -> tuple[Decoder | EncoderDecoder, dict[str, Any]]:
    """The model with the floats that its packed experts stand for, of a family of transformers where one can say it.

    What packing lost does not come back. Raises SpecError for a model whose experts are not packed.
    """
    check_spec(spec, DequantiseSpec)
    packed_before = (
        model.spec.quantisation if isinstance(model, EncoderDecoder) else moe_part(model).quantisation
    )
    if packed_before is None:
        raise SpecError.of("not_packed")
    wide = dequantise_seq2seq(model) if isinstance(model, EncoderDecoder) else _floats(model, spec)
    return wide, {
        "kind": spec.kind,
        "keeps_function": True,
        "packed_before": packed_before.model_dump(),
        "expert_bytes": [_expert_bytes(model), _expert_bytes(wide)],
    }


def _floats(model: Decoder, spec: DequantiseSpec) -> Decoder:
    wide = rebuilt(model, foretold(model, spec))
    wide.spec = wide.spec.model_copy(update={"family": family_for(wide.spec)})
    for old, new in zip(model.moe_layers(), wide.moe_layers(), strict=True):
        assert isinstance(old.experts, PackedExperts)
        for expert in range(old.experts.num_experts):
            chosen = torch.tensor([expert])
            new.experts.gate_up_E2FD[expert] = old.experts.widened("gate_up", chosen, model.dtype)[0]
            new.experts.down_EDF[expert] = old.experts.widened("down", chosen, model.dtype)[0]
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            wide.get_submodule(name).get_parameter("weight").copy_(module.widened(model.dtype))
    return wide


def _expert_bytes(model: Decoder | EncoderDecoder) -> int:
    """Bytes of the routed experts as they are stored."""
    stored = tensors_of(model)
    return sum(t.numel() * t.element_size() for name, t in stored.items() if ".mlp.experts." in name)


def relative_error(weight: Tensor, experts: PackedExperts, name: str) -> float:
    """Frobenius norm of what packing changed over that of the weight, one expert at a time."""
    lost = total = 0.0
    for expert in range(experts.num_experts):
        kept = experts.widened(name, torch.tensor([expert]), torch.float32)[0]
        both = packed_bytes.lost_and_total(weight[expert], kept)
        lost, total = lost + both[0], total + both[1]
    return (lost / total) ** 0.5 if total else 0.0


def bytes_report(model: Decoder) -> dict[str, Any]:
    """Bytes of every tensor as it is stored, and of the experts against 16 bits a weight."""
    moe = moe_part(model)
    weights = 3 * model.spec.hidden_size * moe.moe_intermediate_size * moe.num_experts * len(moe.moe_layers)
    return packed_bytes.bytes_report(model, weights)
