"""config.json in and out: a closed schema for each family, so that no unknown key can change what a model is."""

from __future__ import annotations

from typing import Any

from moe_core.errors import FormatError, SpecError
from moe_core.model.families import schemas
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.gate import SoftmaxTopk

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "turnout_moe": "TurnoutMoeForCausalLM",
}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The specification behind a config.json; FormatError for unknown families, keys and impossible values."""
    family = config.get("model_type")
    schema = schemas.BY_FAMILY.get(family) if isinstance(family, str) else None
    if schema is None:
        known = ", ".join(schemas.BY_FAMILY)
        raise FormatError(f"config.json: model_type {str(family)[:40]!r} is not served; known are {known}")
    try:
        return schema.parse(config).to_spec()
    except SpecError as error:
        raise FormatError(f"config.json: {error}") from error


def config_of(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The config.json of a model, readable by transformers for the llama and mixtral families."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[spec.family]],
        "model_type": spec.family,
        "dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_parameters": {"rope_theta": spec.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": _one_or_many(spec.eos_token_ids),
    }
    return {**config, **_moe_keys(spec)}


def _moe_keys(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    if moe is None:
        return {"attention_bias": False, "mlp_bias": False}
    keys: dict[str, Any] = {"num_local_experts": moe.num_experts, "num_experts_per_tok": moe.top_k}
    if spec.family == "mixtral":
        return {**keys, "sliding_window": None}
    return {
        **keys,
        "moe_layers": list(moe.moe_layers),
        "moe_intermediate_size": moe.moe_intermediate_size,
        "num_shared_experts": moe.num_shared_experts,
        "shared_intermediate_size": moe.shared_intermediate_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "router_temperature": moe.temperature,
        **_gate_keys(moe),
    }


def _gate_keys(moe: MoeSpec) -> dict[str, Any]:
    """How tokens find experts, where it is not plain softmax top-k: older readers know only that."""
    keys: dict[str, Any] = {}
    if moe.temperature_schedule is not None:
        keys["router_temperature_schedule"] = moe.temperature_schedule.model_dump()
    if moe.gate != SoftmaxTopk():
        keys["router_gate"] = moe.gate.model_dump()
    if moe.capacity is not None:
        keys["router_capacity"] = moe.capacity.model_dump()
    if moe.twins is not None:
        keys["router_twins"] = moe.twins.model_dump()
    if moe.quantisation is not None:
        keys["expert_quantisation"] = moe.quantisation.model_dump()
    return keys


def _one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)
