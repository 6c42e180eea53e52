"""Checkpoint names of the decoder's trunk: embeddings, norms, attention and dense feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator

from moe_core.model.families.expert_names import mlp_slots, moe_slots
from moe_core.model.families.packed_names import packed_slots
from moe_core.model.families.slots import Part, Slot
from moe_core.spec import ModelSpec
from moe_core.spec.quantisation import ExpertQuantSpec


def slots_of(spec: ModelSpec) -> list[Slot]:
    """Every tensor of a checkpoint of this model as its family names them, lowest layer first."""
    slots = trunk_slots(spec)
    for layer in spec.moe.moe_layers if spec.moe else ():
        slots += moe_slots(spec, layer)
    # Stable: what belongs to no layer keeps its place before and after them.
    last = spec.num_hidden_layers
    return sorted(slots, key=lambda slot: _place(slot, last))


def _place(slot: Slot, last: int) -> int:
    if slot.layer is not None:
        return slot.layer
    return -1 if slot.part == "embedding" else last


def trunk_slots(spec: ModelSpec) -> list[Slot]:
    """Everything but routers and experts."""
    width = spec.hidden_size
    slots = [Slot("model.embed_tokens.weight", "embed_tokens.weight", (spec.vocab_size, width), "embedding")]
    for layer in range(spec.num_hidden_layers):
        slots += _norm_slots(spec, layer)
        slots += _latent_slots(spec, layer) if spec.attention.mla else attention_slots(spec, layer)
        if not spec.is_moe_layer(layer):
            there, here = f"model.layers.{layer}.mlp", f"layers.{layer}.mlp"
            slots += mlp_slots(there, here, width, spec.intermediate_size, layer, "dense_mlp")
    slots.append(Slot("model.norm.weight", "norm.weight", (width,), "norms"))
    if not spec.tie_word_embeddings:
        shape, packing = (spec.vocab_size, width), spec.moe.head_quantisation if spec.moe else None
        slots += _map_slots("lm_head", "lm_head", shape, packing, "head")
    return slots


def _map_slots(
    there: str,
    here: str,
    shape: tuple[int, int],
    packing: ExpertQuantSpec | None,
    part: Part,
    *,
    rows: tuple[int, int] | None = None,
    layer: int | None = None,
) -> Iterator[Slot]:
    """A linear map, packed or not."""
    if packing is not None:
        return packed_slots(there, f"{here}.weight", shape, packing, part, rows=rows, layer=layer)
    return iter([Slot(f"{there}.weight", f"{here}.weight", shape, part, rows=rows, layer=layer)])


def _norm_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    there, here, shape = f"model.layers.{layer}", f"layers.{layer}", (spec.hidden_size,)
    yield Slot(f"{there}.input_layernorm.weight", f"{here}.input_norm.weight", shape, "norms", layer=layer)
    if not spec.parallel_blocks:
        after = f"{there}.post_attention_layernorm.weight"
        yield Slot(after, f"{here}.mlp_norm.weight", shape, "norms", layer=layer)


def attention_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Attention of one layer; queries, keys and values share one packed map."""
    there, here = f"model.layers.{layer}.self_attn", f"layers.{layer}.attention"
    width, head, kind = spec.hidden_size, spec.head_dim, spec.attention
    heads, kv = spec.num_heads_of(layer), spec.num_key_value_heads
    packing = spec.moe.attention_quantisation if spec.moe else None
    start = 0
    for name, count in (("q", heads), ("k", kv), ("v", kv)):
        size, rows, ours = count * head, (start, start + count * head), f"{here}.qkv_proj"
        theirs = f"{there}.{name}_proj"
        yield from _map_slots(theirs, ours, (size, width), packing, "attention", rows=rows, layer=layer)
        if kind.qkv_bias:
            yield Slot(f"{theirs}.bias", f"{ours}.bias", (size,), "attention", rows=rows, layer=layer)
        start = rows[1]
    shape = (width, heads * head)
    yield from _map_slots(f"{there}.o_proj", f"{here}.o_proj", shape, packing, "attention", layer=layer)
    if kind.o_bias:
        yield Slot(f"{there}.o_proj.bias", f"{here}.o_proj.bias", (width,), "attention", layer=layer)
    if kind.sinks:
        yield Slot(f"{there}.sinks", f"{here}.sinks_H", (heads,), "attention", layer=layer)
    if kind.head_gate:
        both = (f"{there}.g_proj.weight", f"{here}.g_proj.weight")
        yield Slot(*both, (heads, width), "attention", layer=layer)
    if kind.qk_norm != "none":
        whole = kind.qk_norm == "projection"
        for name, count in (("q", heads), ("k", kv)):
            size = count * head if whole else head
            norm = f"{name}_norm.weight"
            yield Slot(f"{there}.{norm}", f"{here}.{norm}", (size,), "norms", layer=layer)


def _latent_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Latent attention, named as in DeepSeek-V3."""
    there, here = f"model.layers.{layer}.self_attn", f"layers.{layer}.attention"
    mla, width, heads = spec.attention.mla, spec.hidden_size, spec.num_attention_heads
    assert mla is not None
    rank, queries = mla.kv_lora_rank, heads * spec.head_dim
    low = mla.q_lora_rank
    maps = [
        ("q_proj" if low is None else "q_b_proj", "q_proj", (queries, low or width)),
        ("kv_a_proj_with_mqa", "kv_a_proj", (rank + mla.qk_rope_head_dim, width)),
        ("kv_b_proj", "kv_b_proj", (heads * (mla.qk_nope_head_dim + mla.v_head_dim), rank)),
        ("o_proj", "o_proj", (width, heads * mla.v_head_dim)),
    ]
    norms = [("kv_a_layernorm", "kv_a_norm", rank)]
    if low is not None:
        maps.insert(0, ("q_a_proj", "q_a_proj", (low, width)))
        norms.insert(0, ("q_a_layernorm", "q_a_norm", low))
    for theirs, ours, shape in maps:
        yield Slot(f"{there}.{theirs}.weight", f"{here}.{ours}.weight", shape, "attention", layer=layer)
    for theirs, ours, size in norms:
        yield Slot(f"{there}.{theirs}.weight", f"{here}.{ours}.weight", (size,), "norms", layer=layer)
