"""Keys that a released config.json has without saying anything: another family's, with the value that means "none of it"."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

# What each key must say where a family has no such thing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "qkv_bias": (False,),
    "mlp_bias": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "layer_types": (None,),
    "mlp_only_layers": (None, []),
    "decoder_sparse_step": (1,),
    "moe_layer_freq": (1,),
    "first_k_dense_replace": (0,),
    "n_shared_experts": (None, 0),
    "num_shared_experts": (None, 0),
    "shared_expert_intermediate_size": (None, 0),
    "n_group": (None, 1),
    "topk_group": (None, 1),
    "routed_scaling_factor": (None, 1.0),
    "router_jitter_noise": (0.0,),
    "num_nextn_predict_layers": (None, 0),
    "partial_rotary_factor": (1.0,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attention_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "residual_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
}


def without_neutral(data: Any, known: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """`data` without the keys that its family does not know and that say nothing.

    Raises ValueError naming key, value and what is computed, where such a key says something.
    """
    if not isinstance(data, dict):
        return data
    foreign = {key: data[key] for key in data if key in neutral and key not in known}
    for key, value in foreign.items():
        if not any(_same(value, nothing) for nothing in neutral[key]):
            wanted = " or ".join(_json(nothing) for nothing in neutral[key])
            raise ValueError(
                f"{key} is {_json(value)[:80]}, which is not computed for this family; it must be {wanted}, or left out"
            )
    return {key: value for key, value in data.items() if key not in foreign}


def _same(value: Any, nothing: Any) -> bool:
    # False is not 0, but 1 is 1.0.
    return isinstance(value, bool) == isinstance(nothing, bool) and bool(value == nothing)


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
