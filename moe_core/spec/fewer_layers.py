"""A model of some of its own layers: which they are, and what its specification is then. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_core.errors import placed
from moe_core.sentences import CORE
from moe_core.spec.model import ModelSpec

FAMILY = "turnout_moe"


def kept_counts(spec: ModelSpec, num_layers: int) -> tuple[int, int]:
    """How many expert layers and dense layers are left when so many layers are kept: their proportion stays.

    Raises SpecError for more layers than there are, and where layers differ in the shape of their attention.
    """
    if num_layers > spec.num_hidden_layers:
        sentence = CORE.say("student_larger", asked=num_layers, own=spec.num_hidden_layers)
        raise placed("num_hidden_layers", sentence)
    if spec.attention.sliding is not None:
        raise placed("num_hidden_layers", CORE.say("layers_differ"))
    num_moe = sum(map(spec.is_moe_layer, range(spec.num_hidden_layers)))
    kept = max(1, round(num_layers * num_moe / spec.num_hidden_layers))
    # No more dense layers than there are.
    kept = max(kept, num_layers - (spec.num_hidden_layers - num_moe))
    return kept, num_layers - kept


def kept_layers(spec: ModelSpec, num_layers: int, influence_L: Sequence[float] | None = None) -> list[int]:
    """The layers that stay, lowest first: of expert layers and of dense ones those with the most influence.

    Ties go to the lower layer, and so does everything while no influence is measured. Raises SpecError as `kept_counts`.
    """
    num_moe, num_dense = kept_counts(spec, num_layers)
    influence_L = influence_L or [0.0] * spec.num_hidden_layers
    chosen: list[int] = []
    for is_moe, count in ((True, num_moe), (False, num_dense)):
        mine = [layer for layer in range(spec.num_hidden_layers) if spec.is_moe_layer(layer) is is_moe]
        chosen += sorted(mine, key=lambda layer: (-influence_L[layer], layer))[:count]
    return sorted(chosen)


def with_kept(spec: ModelSpec, keep: Sequence[int]) -> ModelSpec:
    """The specification of the kept layers, its tables of layers numbered anew; its family is "turnout_moe".

    A window or bounds that no kept layer has are none.
    """
    place = {layer: at for at, layer in enumerate(keep)}
    plain: dict[str, Any] = spec.model_dump()
    plain |= {"num_hidden_layers": len(keep), "family": FAMILY}
    attention = plain["attention"]
    for part, name in ((plain["moe"], "moe_layers"), (attention, "sliding_layers")):
        part[name] = tuple(place[layer] for layer in part[name] if layer in place)
    if not attention["sliding_layers"]:
        attention["sliding_window"] = None
    for name in ("expert_clamps", "dense_clamps"):
        clamps = tuple(plain[name][layer] for layer in keep) if plain[name] else ()
        plain[name] = clamps if any(clamps) else ()
    return ModelSpec.parse(plain)
