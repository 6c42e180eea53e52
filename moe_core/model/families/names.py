"""Checkpoint names of every part of the decoder, as Hugging Face writes Llama and Mixtral."""

from __future__ import annotations

from collections.abc import Iterator

from moe_core.kernels.packing import code_bytes, num_groups
from moe_core.model.families.slots import Part, Slot
from moe_core.spec import ModelSpec


def slots_of(spec: ModelSpec) -> list[Slot]:
    """Every tensor of a checkpoint of this model, lowest layer first."""
    width = spec.hidden_size
    slots = [Slot("model.embed_tokens.weight", "embed_tokens.weight", (spec.vocab_size, width), "embedding")]
    for layer in range(spec.num_hidden_layers):
        slots += attention_slots(spec, layer)
        slots += moe_slots(spec, layer) if spec.is_moe_layer(layer) else dense_slots(spec, layer)
    slots.append(Slot("model.norm.weight", "norm.weight", (width,), "norms"))
    if not spec.tie_word_embeddings:
        slots.append(Slot("lm_head.weight", "lm_head.weight", (spec.vocab_size, width), "head"))
    return slots


def attention_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Norms and attention of one layer; queries, keys and values share one packed map."""
    there, here = f"model.layers.{layer}", f"layers.{layer}"
    width, head = spec.hidden_size, spec.head_dim
    heads, kv = spec.num_attention_heads, spec.num_key_value_heads
    yield Slot(f"{there}.input_layernorm.weight", f"{here}.input_norm.weight", (width,), "norms", layer=layer)
    start = 0
    for name, count in (("q", heads), ("k", kv), ("v", kv)):
        rows = (start, start + count * head)
        qkv = f"{here}.attention.qkv_proj.weight"
        shape = (count * head, width)
        yield Slot(f"{there}.self_attn.{name}_proj.weight", qkv, shape, "attention", rows=rows, layer=layer)
        start = rows[1]
    out = f"{here}.attention.o_proj.weight"
    yield Slot(f"{there}.self_attn.o_proj.weight", out, (width, heads * head), "attention", layer=layer)
    after = f"{there}.post_attention_layernorm.weight"
    yield Slot(after, f"{here}.mlp_norm.weight", (width,), "norms", layer=layer)


def dense_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """The dense feed-forward of one layer."""
    there, here = f"model.layers.{layer}.mlp", f"layers.{layer}.mlp"
    yield from _mlp_slots(there, here, spec.hidden_size, spec.intermediate_size, layer, "dense_mlp")


def _mlp_slots(there: str, here: str, width: int, inner: int, layer: int, part: Part) -> Iterator[Slot]:
    packed = f"{here}.gate_up_proj.weight"
    yield Slot(f"{there}.gate_proj.weight", packed, (inner, width), part, rows=(0, inner), layer=layer)
    yield Slot(f"{there}.up_proj.weight", packed, (inner, width), part, rows=(inner, 2 * inner), layer=layer)
    yield Slot(f"{there}.down_proj.weight", f"{here}.down_proj.weight", (width, inner), part, layer=layer)


def moe_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Router, experts and shared expert of one layer, named as in Mixtral (w1 gate, w3 up, w2 down)."""
    moe = spec.moe
    assert moe is not None
    there, here = f"model.layers.{layer}.block_sparse_moe", f"layers.{layer}.mlp"
    width, inner = spec.hidden_size, moe.moe_intermediate_size
    for part in moe.gate_tensors(width, spec.vocab_size):
        gate = (f"{there}.gate.{part.name}", f"{here}.router.{part.name}")
        yield Slot(*gate, part.shape, "router", layer=layer)
    for expert in range(moe.num_experts if moe.quantisation is None else 0):
        for name, parameter, shape, rows in (
            ("w1", "gate_up_E2FD", (inner, width), (0, inner)),
            ("w3", "gate_up_E2FD", (inner, width), (inner, 2 * inner)),
            ("w2", "down_EDF", (width, inner), None),
        ):
            tensor = f"{there}.experts.{expert}.{name}.weight"
            yield Slot(tensor, f"{here}.experts.{parameter}", shape, "experts", expert, rows, layer)
    yield from packed_expert_slots(spec, layer)
    if moe.shared_intermediate_size:
        names = (f"model.layers.{layer}.mlp.shared_expert", f"{here}.shared_expert")
        yield from _mlp_slots(*names, width, moe.shared_intermediate_size, layer, "shared_experts")


def packed_expert_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """Codes, scales and zero points of one layer's quantised experts; nothing where they are not quantised."""
    moe = spec.moe
    assert moe is not None
    if moe.quantisation is None:
        return
    there, here = f"model.layers.{layer}.block_sparse_moe.experts", f"layers.{layer}.mlp.experts"
    kinds = [("codes", "U8", code_bytes), ("scales", "F16", num_groups)]
    kinds += [] if moe.quantisation.symmetric else [("zeros", "U8", num_groups)]
    inner, width = moe.moe_intermediate_size, spec.hidden_size
    for expert in range(moe.num_experts):
        for name, matrix, num_rows, length, rows in (
            ("w1", "gate_up", inner, width, (0, inner)),
            ("w3", "gate_up", inner, width, (inner, 2 * inner)),
            ("w2", "down", width, inner, None),
        ):
            for kind, dtype, columns in kinds:
                shape = (num_rows, columns(length, moe.quantisation))
                names = (f"{there}.{expert}.{name}.{kind}", f"{here}.{matrix}_{kind}")
                yield Slot(*names, shape, "experts", expert, rows, layer, dtype)


def fused_moe_slots(spec: ModelSpec, layer: int) -> Iterator[Slot]:
    """The same layer where a checkpoint packs its experts as transformers 5 does in memory."""
    moe = spec.moe
    assert moe is not None
    there, here = f"model.layers.{layer}.mlp", f"layers.{layer}.mlp"
    experts, width, inner = moe.num_experts, spec.hidden_size, moe.moe_intermediate_size
    yield Slot(f"{there}.gate.weight", f"{here}.router.weight", (experts, width), "router", layer=layer)
    gate_up, down = (experts, 2 * inner, width), (experts, width, inner)
    packed = f"{here}.experts"
    yield Slot(f"{there}.experts.gate_up_proj", f"{packed}.gate_up_E2FD", gate_up, "experts", layer=layer)
    yield Slot(f"{there}.experts.down_proj", f"{packed}.down_EDF", down, "experts", layer=layer)
    if moe.shared_intermediate_size:
        names = (f"{there}.shared_expert", f"{here}.shared_expert")
        yield from _mlp_slots(*names, width, moe.shared_intermediate_size, layer, "shared_experts")
