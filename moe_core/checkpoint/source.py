"""Which tensors a directory of weights has: experts apart, packed or alternating, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Set

import torch

from moe_core.checkpoint.quantised import Weights
from moe_core.model.families import FAMILIES, Slot, moe_slots_in, trunk_slots
from moe_core.spec import ModelSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def source_slots(spec: ModelSpec, weights: Weights) -> list[Slot]:
    """The tensors of a source, each layer's experts in whichever form the files have them."""
    slots, present = trunk_slots(spec), weights.names
    for layer in spec.moe.moe_layers if spec.moe else ():
        slots += moe_slots_in(spec, layer, present)
    return slots


def spec_in(spec: ModelSpec, weights: Weights) -> ModelSpec:
    """The specification of what the files hold: untied where config.json ties a head that has weights of its own.

    Old files repeat a tied head; both tensors are compared, and one that says the same changes nothing. Shapes are not
    checked here. Source: `tie_weights` of transformers 5.23, which does not tie two tensors that differ.
    """
    if not spec.tie_word_embeddings or not {EMBEDDING, HEAD} <= weights.names or _alike(weights):
        return spec
    return spec.model_copy(update={"tie_word_embeddings": False})


def _alike(weights: Weights) -> bool:
    if weights.info(EMBEDDING).shape != weights.info(HEAD).shape:
        return False
    embedding_VD, head_VD = weights.tensor(EMBEDDING), weights.tensor(HEAD)
    if embedding_VD.dtype != head_VD.dtype:
        embedding_VD, head_VD = embedding_VD.float(), head_VD.float()
    return torch.equal(embedding_VD, head_VD)


def ignorable(spec: ModelSpec, present: Set[str]) -> list[str]:
    """Tensors that say nothing new, of other parts than the decoder, and of layers that predict further tokens."""
    layers = range(spec.num_hidden_layers)
    rotary = ("model", *(f"model.layers.{layer}.self_attn" for layer in layers))
    repeated = [f"{owner}.rotary_emb.inv_freq" for owner in rotary]
    repeated += [HEAD] if spec.tie_word_embeddings else []
    family = FAMILIES[spec.family]
    others = [name for name in present if name.startswith(family.other_parts)]
    if not family.predicts_further:
        return [*repeated, *others]
    # Such a layer says what it is by the map that joins a token and a hidden state.
    beyond = {
        name: int(match[1])
        for name in present
        if (match := _LAYER.match(name)) and int(match[1]) not in layers
    }
    joins = {layer for name, layer in beyond.items() if name.endswith(f".{layer}.eh_proj.weight")}
    return [*repeated, *others, *(name for name, layer in beyond.items() if layer in joins)]
