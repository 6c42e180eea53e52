"""Taking a mixture apart and putting another together: what every operation on experts has in common.

Shapes: L expert layers, E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.model.families import family_for
from moe_core.model.families.config import OWN
from moe_core.model.layers import MoeMlp
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.base import Spec
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import OperationSpec

# The modules of an expert layer whose tensors may have one row (or block) for each expert.
PER_EXPERT = ("router.", "experts.")


def decoder_of(model: nn.Module) -> Decoder:
    """The model itself; SpecError for one that is not a decoder, of which only `quantise` and `dequantise` know more."""
    if not isinstance(model, Decoder):
        raise SpecError.of("decoders_only", model=type(model).__name__)
    return model


def check_spec(spec: object, wanted: type[Spec]) -> None:
    """Raise SpecError for what is not the specification that an operation takes, plain data among it."""
    if not isinstance(spec, wanted):
        raise SpecError(
            f"the operation takes a {wanted.__name__}, not a {type(spec).__name__}; "
            f"make one of plain data with {wanted.__name__}.parse"
        )


def moe_part(model: Decoder) -> MoeSpec:
    """The expert part of a mixture; SpecError for a dense model."""
    moe = decoder_of(model).spec.moe
    if moe is None:
        raise SpecError.of("dense_has_no_experts", family=model.spec.family)
    return moe


def foretold(model: Decoder, operation: OperationSpec) -> ModelSpec:
    """What `foreseen` says that an operation makes, in the model's own family where that can say so, else another.

    Raises SpecError for whatever `foreseen` refuses: what is refused by the specification alone is so in one place.
    """
    return foretold_spec(decoder_of(model).spec, operation)


def foretold_spec(spec: ModelSpec, operation: OperationSpec) -> ModelSpec:
    """The same of the specification alone."""
    told = foreseen(spec, operation)
    if spec.moe is None:
        return told
    return told.model_copy(update={"family": family_for(told, first=spec.family)})


def spec_with(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """The model with another expert part: of its own family where that can say so, else of another that can."""
    assert spec.moe is not None
    changed = {**spec.model_dump(), "moe": {**spec.moe.model_dump(), **changes}, "family": OWN}
    parsed = ModelSpec.parse(changed)
    return parsed.model_copy(update={"family": family_for(parsed, first=spec.family)})


@torch.no_grad()
def rebuilt(model: Decoder, spec: ModelSpec) -> Decoder:
    """A new decoder with every tensor of `model` that has the same name and shape; the rest is for the caller."""
    new = Decoder(spec, model.dtype).to(model.device)
    source = tensors_of(model)
    for name, tensor in tensors_of(new).items():
        if name in source and source[name].shape == tensor.shape:
            tensor.copy_(source[name])
    return new


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, sharing memory."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def with_experts(
    model: Decoder,
    source_LE: Sequence[Sequence[int]],
    spec: ModelSpec,
    *,
    filled_by_caller: frozenset[str] = frozenset(),
) -> Decoder:
    """A new decoder whose expert j of the i-th expert layer is a copy of expert `source_LE[i][j]`, with its gate.

    Raises SpecError for a tensor that has another shape now, unless the caller fills it.
    """
    new = rebuilt(model, spec)
    for old, fresh, sources in zip(model.moe_layers(), new.moe_layers(), source_LE, strict=True):
        index = torch.tensor(sources, device=old.router.weight.device)
        before = per_expert(old)
        for name, tensor in per_expert(fresh).items():
            if name in filled_by_caller:
                continue
            if name not in before or before[name].shape[1:] != tensor.shape[1:]:
                raise SpecError(
                    f"{name} of layer {old.layer} cannot be taken along; this operation does not know it"
                )
            tensor.copy_(before[name][index])
    return new


def per_expert(layer: MoeMlp) -> dict[str, Tensor]:
    """The tensors of a layer that have one entry for each expert along their first axis."""
    return {
        name: tensor
        for name, tensor in tensors_of(layer).items()
        if name.startswith(PER_EXPERT) and tensor.ndim and tensor.shape[0] == layer.moe.num_experts
    }
