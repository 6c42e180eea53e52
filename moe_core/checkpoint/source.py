"""Which tensors a directory of weights has: experts apart, packed or alternating, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Set

from moe_core.checkpoint.quantised import Weights
from moe_core.model.families import FAMILIES, Slot, moe_slots_in, trunk_slots
from moe_core.spec import ModelSpec

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def source_slots(spec: ModelSpec, weights: Weights) -> list[Slot]:
    """The tensors of a source, each layer's experts in whichever form the files have them."""
    slots, present = trunk_slots(spec), weights.names
    for layer in spec.moe.moe_layers if spec.moe else ():
        slots += moe_slots_in(spec, layer, present)
    return slots


def ignorable(spec: ModelSpec, present: Set[str]) -> list[str]:
    """Tensors that say nothing new, of other parts than the decoder, and of layers that predict further tokens."""
    layers = range(spec.num_hidden_layers)
    frequencies = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in layers]
    family = FAMILIES[spec.family]
    others = [name for name in present if name.startswith(family.other_parts)]
    if not family.predicts_further:
        return [*frequencies, *others]
    # Such a layer says what it is by the map that joins a token and a hidden state.
    beyond = {
        name: int(match[1])
        for name in present
        if (match := _LAYER.match(name)) and int(match[1]) not in layers
    }
    joins = {layer for name, layer in beyond.items() if name.endswith(f".{layer}.eh_proj.weight")}
    return [*frequencies, *others, *(name for name, layer in beyond.items() if layer in joins)]
