"""Which tensors a directory of weights has: experts apart, packed or alternating, whoever wrote it."""

from __future__ import annotations

from moe_core.checkpoint.reader import WeightReader
from moe_core.model.families import Slot, moe_slots_in, trunk_slots
from moe_core.spec import ModelSpec


def source_slots(spec: ModelSpec, reader: WeightReader) -> list[Slot]:
    """The tensors of a source, each layer's experts in whichever form the files have them."""
    slots, present = trunk_slots(spec), reader.names
    for layer in spec.moe.moe_layers if spec.moe else ():
        slots += moe_slots_in(spec, layer, present)
    return slots


def ignorable(spec: ModelSpec) -> list[str]:
    """Tensors that some writers add and that say nothing new."""
    return [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(spec.num_hidden_layers)]
