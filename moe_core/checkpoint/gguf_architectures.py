"""The architectures of llama.cpp that are read, each as the config.json that its family would have.

A file's metadata says less than config.json does: what it leaves out is what llama.cpp computes for the architecture, and
where that cannot be known the file is refused.
Source: the converters and graphs of llama.cpp (https://github.com/ggml-org/llama.cpp, conversion/ and src/models/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.checkpoint.gguf_header import GgufHead, as_written
from moe_core.checkpoint.gguf_keys import scaling_type, unknown_key
from moe_core.checkpoint.gguf_step import RELEASED, step35
from moe_core.errors import FormatError, SpecError
from moe_core.model.families.rope import RopeParameters
from moe_core.model.rotary import frequencies
from moe_core.spec.attention import RopeSpec

Config = dict[str, Any]
# The values of a tensor by its name.
Values = Callable[[str], NDArray[np.float32]]
# What each pair of rotary positions is stretched by, where a file has it.
ROPE_FREQS = "rope_freqs.weight"
# The stretching of Llama 3.1, which converters take for granted.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SOFTMAX, SIGMOID = 1, 2
# The most layers of a ModelSpec.
MAX_LAYERS = 512
# The widest head of a ModelSpec, in pairs.
MAX_PAIRS = 512
CPU = torch.device("cpu")
# Architectures whose heads and positions are said layer by layer.
BY_LAYER = ("step35",)


class Keys:
    """Typed access to the keys of one architecture, to which tensors there are, and to the values of small ones."""

    def __init__(self, head: GgufHead, architecture: str, name: str, values: Values) -> None:
        self.head, self.architecture, self.name, self.values = head, architecture, name, values
        # What was asked for so far.
        self.asked: set[str] = set()

    def _get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return self.head.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> Any:
        """A number; FormatError without one, when there is no default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refusal(f"{key} must be a number, not {str(value)[:40]!r}")
        return value

    def numbers(self, key: str, count: int, default: float | None = None) -> list[Any]:
        """A number for each of `count` layers; one number is for all, and values for further layers are left out."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            return [self.number(key, default)] * count
        if value.ndim != 1 or len(value) < count:
            raise self.refusal(f"{key} has {value.size} values for {count} layers")
        first = value[:count].tolist()
        return [as_written(one) for one in first] if value.dtype == np.float32 else list(first)

    def has(self, key: str) -> bool:
        """Whether the file says anything about it."""
        return self._get(key) is not None

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(f"{key} must be true or false, not {str(value)[:40]!r}")
        return value

    def scaling(self) -> Any:
        """How rotary positions are scaled; "none" where they are not."""
        self.asked.add("rope.scaling.type")
        return scaling_type(self.head.metadata, self.architecture)

    def refusal(self, why: str) -> FormatError:
        """An error about a key, without its prefix."""
        return FormatError(f"{self.name}: {self.architecture}.{why}")


def config_from(keys: Keys) -> Config:
    """The config.json of the model; FormatError for what is not known here, keys that nobody asks for among it."""
    config = {**_common(keys), **ARCHITECTURES[keys.architecture](keys)}
    unknown = unknown_key(keys.head.metadata, keys.architecture, keys.asked)
    if unknown is not None:
        value = str(keys.head.metadata[f"{keys.architecture}.{unknown}"])[:40]
        raise keys.refusal(
            f"{unknown} is {value}, and what it changes is not computed; load the model's Hugging Face directory instead"
        )
    return config


def _common(keys: Keys) -> Config:
    width = keys.number("embedding_length")
    heads = keys.number("attention.head_count") if keys.architecture not in BY_LAYER else 1
    embedding = keys.head.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{keys.name}: lacks the tensor token_embd.weight")
    num_layers = keys.number("block_count")
    if not 1 <= num_layers <= MAX_LAYERS:
        raise keys.refusal(f"block_count is {num_layers}; 1 to {MAX_LAYERS} are served")
    experts = keys.number("expert_feed_forward_length", 0)
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": keys.number("feed_forward_length", experts or None),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads
        if keys.architecture in BY_LAYER
        else keys.number("attention.head_count_kv", heads),
        "max_position_embeddings": keys.number("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {} if keys.architecture in BY_LAYER else _rope(keys),
        "tie_word_embeddings": "output.weight" not in keys.head.tensors,
        "bos_token_id": keys.head.metadata.get("tokenizer.ggml.bos_token_id"),
    }


def _rope(keys: Keys) -> Config:
    kind = keys.scaling()
    theta = {"rope_theta": keys.number("rope.freq_base", 10_000.0)}
    if kind == "none":
        return theta | (_stretching(keys, theta["rope_theta"]) if ROPE_FREQS in keys.head.tensors else {})
    if kind != "yarn":
        raise FormatError(
            f"{keys.name}: rotary positions are scaled ({str(kind)[:40]!r}); plain ones and 'yarn' are computed"
        )
    if ROPE_FREQS in keys.head.tensors:
        raise FormatError(
            f"{keys.name}: rotary positions are scaled by yarn and by {ROPE_FREQS}; one is computed"
        )
    for factor in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        # Writers do not agree on what these multiply.
        if keys.number(f"rope.scaling.{factor}", 1.0) != 1.0:
            raise keys.refusal(f"rope.scaling.{factor} changes yarn; only its default is computed")
    return {
        **theta,
        "rope_type": "yarn",
        "factor": keys.number("rope.scaling.factor"),
        "original_max_position_embeddings": keys.number("rope.scaling.original_context_length"),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _stretching(
    keys: Keys, theta: float, num_pairs: int | None = None, contexts: Sequence[Config] = (LLAMA3,)
) -> Config:
    """Llama 3.1's rule, in one of these contexts, out of the divisor of each pair; FormatError for any other rule.

    Of more divisors than `num_pairs` the rest must be 1: pairs that do not turn.
    """
    tensor = keys.head.tensors[ROPE_FREQS]
    if len(tensor.shape) != 1 or tensor.shape[0] > MAX_PAIRS:
        raise FormatError(f"{keys.name}: {ROPE_FREQS} has shape {list(tensor.shape)}; a vector is read")
    every = keys.values(ROPE_FREQS)
    divisors = every[:num_pairs]
    dim = 2 * len(divisors)
    plain = frequencies(dim, theta, RopeSpec(), CPU).numpy()
    for context in contexts if (every[len(divisors) :] == 1.0).all() else ():
        rule = {"rope_type": "llama3", "factor": float(divisors.max()), **context}
        try:
            rope = RopeParameters.parse(rule).to_rope(1, interleaved=False)
            stretched = frequencies(dim, theta, rope, CPU).numpy()
        except SpecError as error:
            raise FormatError(f"{keys.name}: {ROPE_FREQS}: {error}") from error
        if np.allclose(plain / stretched, divisors, rtol=1e-4):
            return rule
    raise FormatError(
        f"{keys.name}: {ROPE_FREQS} does not follow Llama 3.1's rule; load the model's Hugging Face directory instead"
    )


def _whole_heads(keys: Keys) -> Config:
    """Positions turn all of a head."""
    width, heads = keys.number("embedding_length"), keys.number("attention.head_count")
    head_dim = keys.number("attention.key_length", width // max(heads, 1))
    if keys.number("rope.dimension_count", head_dim) != head_dim:
        raise FormatError(
            f"{keys.name}: rotary positions cover only a part of each head; all of it is computed"
        )
    if keys.number("attention.value_length", head_dim) != head_dim:
        raise keys.refusal(f"attention.value_length must equal the key length {head_dim}")
    return {"head_dim": head_dim}


def _experts(keys: Keys, count: str) -> Config:
    """How many experts there are, under the family's own key, and how many a token has."""
    return {count: keys.number("expert_count"), "num_experts_per_tok": keys.number("expert_used_count")}


def _llama(keys: Keys) -> Config:
    """Llama, or Mixtral where the file has experts."""
    if not keys.number("expert_count", 0):
        return {"model_type": "llama", **_whole_heads(keys)}
    width = keys.number("expert_feed_forward_length", keys.number("feed_forward_length"))
    return {
        "model_type": "mixtral",
        **_whole_heads(keys),
        **_experts(keys, "num_local_experts"),
        "intermediate_size": width,
    }


def _qwen2moe(keys: Keys) -> Config:
    shared = keys.number("expert_shared_feed_forward_length", keys.number("feed_forward_length", 0) or None)
    return {
        "model_type": "qwen2_moe",
        **_whole_heads(keys),
        **_experts(keys, "num_experts"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "shared_expert_intermediate_size": shared,
        "norm_topk_prob": keys.flag("expert_weights_norm", default=False),
        "qkv_bias": "blk.0.attn_q.bias" in keys.head.tensors,
    }


def _qwen3moe(keys: Keys) -> Config:
    return {
        "model_type": "qwen3_moe",
        **_whole_heads(keys),
        **_experts(keys, "num_experts"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "norm_topk_prob": keys.flag("expert_weights_norm", default=True),
        "attention_bias": "blk.0.attn_q.bias" in keys.head.tensors,
    }


def _olmoe(keys: Keys) -> Config:
    clip = keys.number("attention.clamp_kqv", 0.0)
    return {
        "model_type": "olmoe",
        **_whole_heads(keys),
        **_experts(keys, "num_experts"),
        "norm_topk_prob": keys.flag("expert_weights_norm", default=False),
        "clip_qkv": clip or None,
    }


def _deepseek2(keys: Keys) -> Config:
    """DeepSeek-V3 and Kimi-K2, or V2 where the gate is a softmax."""
    gating, groups = keys.number("expert_gating_func", SOFTMAX), keys.number("expert_group_count", 1)
    if gating not in (SOFTMAX, SIGMOID):
        raise keys.refusal(
            f"expert_gating_func is {gating}; 1 (softmax, DeepSeek-V2) and 2 (sigmoid, V3) are served"
        )
    method = "group_limited_greedy" if groups > 1 else "greedy"
    rope = keys.number("rope.dimension_count")
    key_length = keys.number("attention.key_length_mla", keys.number("attention.key_length"))
    value_length = keys.number("attention.value_length_mla", keys.number("attention.value_length"))
    return {
        **(
            {"model_type": "deepseek_v3"}
            if gating == SIGMOID
            else {"model_type": "deepseek_v2", "topk_method": method}
        ),
        "num_key_value_heads": keys.number("attention.head_count"),
        "head_dim": rope,
        "q_lora_rank": keys.number("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": keys.number("attention.kv_lora_rank"),
        "qk_nope_head_dim": key_length - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value_length,
        "rope_interleave": True,
        "rope_parameters": _deepseek_rope(keys),
        **_experts(keys, "n_routed_experts"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "n_shared_experts": keys.number("expert_shared_count"),
        "first_k_dense_replace": keys.number("leading_dense_block_count"),
        "n_group": groups,
        "topk_group": keys.number("expert_group_used_count", 1),
        "norm_topk_prob": keys.flag("expert_weights_norm", default=False),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0) or 1.0,
    }


def _deepseek_rope(keys: Keys) -> Config:
    """The file has a tenth of mscale_all_dim; mscale is not in it and equals that in every released model."""
    rope = _rope(keys)
    if rope.get("rope_type") == "yarn" and keys.has("rope.scaling.yarn_log_multiplier"):
        mscale = 10.0 * keys.number("rope.scaling.yarn_log_multiplier")
        rope |= {"mscale": mscale, "mscale_all_dim": mscale}
    return rope


def _gpt_oss(keys: Keys) -> Config:
    rope = _rope(keys)
    if rope.get("rope_type") == "yarn":
        # Not in the file: released models blend between fractional ends.
        rope["truncate"] = False
    return {
        "model_type": "gpt_oss",
        **_whole_heads(keys),
        **_experts(keys, "num_local_experts"),
        "intermediate_size": keys.number("expert_feed_forward_length"),
        "rope_parameters": rope,
        "sliding_window": keys.number("attention.sliding_window"),
    }


def _step35(keys: Keys) -> Config:
    kind = keys.scaling()
    if kind != "none":
        raise keys.refusal(f"rope.scaling.type is {str(kind)[:40]!r}; only divisors of pairs are read")
    return step35(keys, _step_rope)


def _step_rope(keys: Keys, theta: float, num_pairs: int) -> Config:
    if ROPE_FREQS not in keys.head.tensors:
        return {"rope_type": "default"}
    return _stretching(keys, theta, num_pairs, (LLAMA3, RELEASED))


ARCHITECTURES: Mapping[str, Callable[[Keys], Config]] = {
    "llama": _llama,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "olmoe": _olmoe,
    "deepseek2": _deepseek2,
    "gpt-oss": _gpt_oss,
    "step35": _step35,
}
# Which families come out of them.
FAMILIES_OF: Mapping[str, tuple[str, ...]] = {
    "llama": ("llama", "mixtral"),
    "qwen2moe": ("qwen2_moe",),
    "qwen3moe": ("qwen3_moe",),
    "olmoe": ("olmoe",),
    "deepseek2": ("deepseek_v3", "deepseek_v2"),
    "gpt-oss": ("gpt_oss",),
    "step35": ("step3p5",),
}
