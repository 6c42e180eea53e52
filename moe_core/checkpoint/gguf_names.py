"""How llama.cpp names the tensors of the llama architecture, dense and with experts."""

from __future__ import annotations

import re

from moe_core.errors import FormatError
from moe_core.model.families import Slot

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
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERT = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight\Z")
_EXPERT_NAME = re.compile(r"block_sparse_moe\.experts\.\d+\.(w[123])\Z")


def gguf_name(slot: Slot) -> str:
    """The GGUF tensor in which a slot's values lie; all experts of a layer share one."""
    if slot.tensor in _WHOLE:
        return _WHOLE[slot.tensor]
    match = _LAYER.match(slot.tensor)
    if match is None:
        raise FormatError(f"{slot.tensor}: has no place in a GGUF file")
    layer, inside = match.groups()
    expert = _EXPERT_NAME.match(inside)
    name = _EXPERT[expert.group(1)] if expert else _IN_LAYER.get(inside)
    if name is None:
        raise FormatError(f"{slot.tensor}: has no place in a GGUF file")
    return f"blk.{layer}.{name}.weight"


def is_rope_permuted(slot: Slot) -> bool:
    """True for queries and keys, whose rows llama.cpp reorders within each head."""
    return slot.tensor.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight"))
