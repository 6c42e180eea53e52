"""Step-3.5 as llama.cpp keeps it: numbers of heads by layer, halves of heads that turn, and layers that predict further.

Source: llama.cpp's converter and graph of `step35` (conversion/step3.py, src/models/step35.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_core.checkpoint.gguf_architectures import Keys

Config = dict[str, Any]
SIGMOID = 2
# Of each head: half turns in layers that see everything, all of it in those that see a window. Not in the file.
FULL_SHARE, SLIDING_SHARE = 0.5, 1.0
# The stretching of released models beside Llama 3.1's.
RELEASED = {"low_freq_factor": 1.0, "high_freq_factor": 32.0, "original_max_position_embeddings": 131_072}


def step35(keys: Keys, rope: Callable[[Keys, float, int], Config]) -> Config:
    """The config.json; `rope(keys, theta, pairs)` says how the first pairs are stretched. FormatError as elsewhere."""
    num_layers = num_layers_of(keys)
    slides = [bool(value) for value in keys.numbers("attention.sliding_window_pattern", num_layers)]
    heads = keys.numbers("attention.head_count", num_layers)
    full = {count for count, sliding in zip(heads, slides, strict=True) if not sliding}
    own = {count for count, sliding in zip(heads, slides, strict=True) if sliding}
    kv = set(keys.numbers("attention.head_count_kv", num_layers))
    for name, found in (("head_count", full), ("head_count", own), ("head_count_kv", kv)):
        if len(found) > 1:
            raise keys.refusal(
                f"attention.{name} must be the same in all layers of one kind, and is {sorted(found)}"
            )
    if keys.number("expert_gating_func", SIGMOID) != SIGMOID or not keys.flag(
        "expert_weights_norm", default=False
    ):
        raise keys.refusal(
            "expert_weights_norm must be true and expert_gating_func 2 (sigmoid); others are not computed"
        )
    head_dim = keys.number("attention.key_length")
    sparse = [f"blk.{layer}.ffn_gate_inp.weight" in keys.head.tensors for layer in range(num_layers)]
    theta = keys.number("rope.freq_base", 10_000.0)
    stretched = rope(keys, theta, int(head_dim * FULL_SHARE) // 2)
    return {
        "model_type": "step3p5",
        "num_hidden_layers": num_layers,
        "num_attention_heads": next(iter(full or own)),
        "num_sliding_attention_heads": next(iter(own), None),
        "num_key_value_heads": kv.pop(),
        "head_dim": head_dim,
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in slides],
        "sliding_window": keys.number("attention.sliding_window"),
        "mlp_layer_types": ["sparse" if has else "dense" for has in sparse],
        "n_routed_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "share_expert_dim": keys.number("expert_shared_feed_forward_length"),
        "moe_router_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "swiglu_limits": keys.numbers("swiglu_clamp_exp", num_layers, 0.0),
        "swiglu_limits_shared": keys.numbers("swiglu_clamp_shexp", num_layers, 0.0),
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, "partial_rotary_factor": FULL_SHARE, **stretched},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": keys.number("rope.freq_base_swa", theta),
                "partial_rotary_factor": SLIDING_SHARE,
            },
        },
    }


def num_layers_of(keys: Keys) -> int:
    """The layers that are read; those that predict further tokens are counted in the file, and come after them."""
    count, further = keys.number("block_count"), keys.number("nextn_predict_layers", 0)
    if not 0 <= further < count:
        raise keys.refusal(f"nextn_predict_layers ({further}) must be below block_count ({count})")
    return int(count - further)
