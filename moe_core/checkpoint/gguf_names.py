"""How llama.cpp names the tensors of a decoder, and where each belongs in ours; all experts of a layer share a tensor."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import replace

from moe_core.errors import FormatError
from moe_core.model.families import Slot, router_and_shared_slots, trunk_slots
from moe_core.spec import ModelSpec

_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.g_proj": "attn_gate",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"{shared}.{part}_proj": f"ffn_{part}_shexp"
       for shared in ("mlp.shared_expert", "mlp.shared_experts", "share_expert") for part in ("gate", "up", "down")},
}  # fmt: skip
# Names that are whole in one of the two worlds.
_ODD = {
    "self_attn.sinks": "attn_sinks.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "moe.router_bias": "exp_probs_b.bias",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\Z")
# llama.cpp stores the rotary pairs of these families side by side.
_PERMUTED = ("llama", "mixtral")


def gguf_slots(spec: ModelSpec, present: Container[str]) -> list[Slot]:
    """Every tensor of a GGUF file of this model; `present` decides between forms that writers have used."""
    slots: list[Slot] = []
    for slot in trunk_slots(spec):
        slots += _latent(slot, spec, present) if slot.tensor.endswith("kv_b_proj.weight") else [slot]
    for layer in spec.moe.moe_layers if spec.moe else ():
        slots += [*router_and_shared_slots(spec, layer), *_experts(spec, layer, present)]
    return [replace(slot, tensor=gguf_name(slot.tensor, spec.family)) for slot in slots]


def gguf_name(tensor: str, family: str) -> str:
    """The GGUF name of a checkpoint's tensor; FormatError where there is none."""
    if tensor.startswith("blk."):
        return tensor
    if tensor in _WHOLE:
        return _WHOLE[tensor]
    match = _LAYER.match(tensor)
    if match is not None:
        layer, inside = match.groups()
        if inside in _ODD:
            return f"blk.{layer}.{_ODD[inside]}"
        stem, _, kind = inside.rpartition(".")
        if family == "gpt_oss" and stem == "post_attention_layernorm":
            return f"blk.{layer}.post_attention_norm.{kind}"
        if stem in _IN_LAYER and kind in ("weight", "bias"):
            return f"blk.{layer}.{_IN_LAYER[stem]}.{kind}"
    raise FormatError(
        f"{tensor}: has no place in a GGUF file; load the model's Hugging Face directory instead"
    )


def is_rope_permuted(slot: Slot, spec: ModelSpec) -> bool:
    """True for queries and keys whose rows llama.cpp reorders within each head."""
    return spec.family in _PERMUTED and slot.tensor.endswith(("attn_q.weight", "attn_k.weight"))


def is_shifted(slot: Slot, spec: ModelSpec) -> bool:
    """True for norms that llama.cpp stores with the one added that the model adds by itself."""
    return spec.zero_centred_norms and slot.tensor.endswith("norm.weight")


def is_further(tensor: str, spec: ModelSpec) -> bool:
    """True for tensors of layers after the last one, which predict further tokens and are not read."""
    match = re.match(r"blk\.(\d{1,4})\.", tensor)
    return spec.family == "step3p5" and match is not None and int(match.group(1)) >= spec.num_hidden_layers


def _latent(slot: Slot, spec: ModelSpec, present: Container[str]) -> list[Slot]:
    """The map out of the latent, whole as older writers have it, or in a part for keys and one for values."""
    mla, heads, there = spec.attention.mla, spec.num_attention_heads, f"blk.{slot.layer}"
    if mla is None or f"{there}.attn_kv_b.weight" in present:
        return [slot]
    keys = (heads, mla.kv_lora_rank, mla.qk_nope_head_dim)
    values = (heads, mla.v_head_dim, mla.kv_lora_rank)
    return [
        replace(slot, tensor=f"{there}.attn_k_b.weight", shape=keys, fold="latent keys"),
        replace(slot, tensor=f"{there}.attn_v_b.weight", shape=values, fold="latent values"),
    ]


def _experts(spec: ModelSpec, layer: int, present: Container[str]) -> Iterator[Slot]:
    moe = spec.moe
    assert moe is not None
    there, here = f"blk.{layer}.ffn", f"layers.{layer}.mlp.experts"
    experts, width, inner = moe.num_experts, spec.hidden_size, moe.moe_intermediate_size
    down = Slot(
        f"{there}_down_exps.weight", f"{here}.down_EDF", (experts, width, inner), "experts", layer=layer
    )
    both = f"{there}_gate_up_exps.weight"
    if f"{there}_gate.0.weight" in present:
        yield from _single_experts(down, there, here)
        return
    if both in present:
        yield replace(down, tensor=both, parameter=f"{here}.gate_up_E2FD", shape=(experts, 2 * inner, width))
    else:
        half = replace(down, parameter=f"{here}.gate_up_E2FD", shape=(experts, inner, width))
        yield replace(half, tensor=f"{there}_gate_exps.weight", fold="gate")
        yield replace(half, tensor=f"{there}_up_exps.weight", fold="up")
    yield down
    if moe.expert_bias:
        half = replace(down, parameter=f"{here}.gate_up_bias_E2F", shape=(experts, inner))
        yield replace(half, tensor=f"{there}_gate_exps.bias", fold="gate")
        yield replace(half, tensor=f"{there}_up_exps.bias", fold="up")
        bias = f"{there}_down_exps.bias"
        yield replace(down, tensor=bias, parameter=f"{here}.down_bias_ED", shape=(experts, width))


def _single_experts(down: Slot, there: str, here: str) -> Iterator[Slot]:
    """One tensor for each map of each expert, as the first files of Mixtral have them; they have no biases."""
    experts, width, inner = down.shape
    for expert in range(experts):
        one = replace(down, expert=expert, parameter=f"{here}.gate_up_E2FD", shape=(inner, width))
        yield replace(one, tensor=f"{there}_gate.{expert}.weight", rows=(0, inner))
        yield replace(one, tensor=f"{there}_up.{expert}.weight", rows=(inner, 2 * inner))
        yield replace(down, tensor=f"{there}_down.{expert}.weight", expert=expert, shape=(width, inner))
