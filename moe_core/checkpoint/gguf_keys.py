"""Keys of a GGUF file that nothing here asks for: those without effect are read over, every other is refused by name.

Source: what llama.cpp reads of an architecture (src/llama-model.cpp, src/models/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Said again by tensors or by other keys, or of no meaning to the computation.
WITHOUT_EFFECT = frozenset(
    {
        "attention.key_length", "attention.value_length", "expert_shared_count", "leading_dense_block_count",
        "rope.dimension_count", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size",
    }
)  # fmt: skip
# Of positions that are not scaled.
WITHOUT_SCALING = frozenset(
    f"rope.scaling.{name}"
    for name in ("original_context_length", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier")
)
_NOTHING, _ONE = (0, 0.0), (0.0, 1.0, 1)
# Values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attention.clamp_kqv": _NOTHING, "attention.scale": _NOTHING,
    "attention.sliding_window": _NOTHING, "attention.temperature_scale": _NOTHING, "attn_logit_softcapping": _NOTHING,
    "embedding_scale": _ONE, "expert_gating_func": (1,), "expert_group_count": (0, 1), "expert_group_used_count": (0, 1),
    "expert_shared_feed_forward_length": _NOTHING, "expert_weights_norm": (True,), "expert_weights_scale": _ONE,
    "final_logit_softcapping": _NOTHING, "logit_scale": _ONE, "nextn_predict_layers": _NOTHING, "residual_scale": _ONE,
    "rope.scale_linear": _ONE, "rope.scaling.attn_factor": (1.0,), "rope.scaling.factor": _ONE,
    "rope.scaling.yarn_attn_factor": (1.0,), "rope.scaling.yarn_ext_factor": (1.0,),
}  # fmt: skip


def scaling_type(metadata: Mapping[str, Any], architecture: str) -> Any:
    """How rotary positions are scaled: "none" without a type, and for a linear one by 1, which changes nothing."""
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    factors = [metadata.get(f"{architecture}.{key}") for key in ("rope.scaling.factor", "rope.scale_linear")]
    # The old key counts where the new one is missing.
    factor = next((value for value in factors if value is not None), 1.0)
    return "none" if kind == "linear" and _is_neutral("rope.scaling.factor", factor) else kind


def _is_neutral(key: str, value: Any) -> bool:
    return any(type(value) is type(one) and value == one for one in NEUTRAL.get(key, ()))


def unknown_key(metadata: Mapping[str, Any], architecture: str, asked: Collection[str]) -> str | None:
    """The first key of the architecture that nobody asked for and that may change what is computed; None without one."""
    prefix = f"{architecture}."
    idle = WITHOUT_SCALING if scaling_type(metadata, architecture) == "none" else frozenset[str]()
    # Without a type llama.cpp takes a factor for one of linear scaling.
    idle |= {"rope.scaling.factor"} if metadata.get(f"{prefix}rope.scaling.type") == "none" else set()
    for whole, value in metadata.items():
        key = whole.removeprefix(prefix)
        if key == whole or key in asked or key in WITHOUT_EFFECT or key in idle:
            continue
        if not _is_neutral(key, value):
            return key
    return None
