"""How a decoder's attention is built: norms, biases, sinks, windows, latent keys, and rotary positions."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from moe_core.spec.base import LayerIndex, Spec

Rank = Annotated[int, Field(ge=1, le=1 << 16)]
HeadDim = Annotated[int, Field(ge=2, le=1024)]
Positive = Annotated[float, Field(gt=0.0, le=1e6)]
# Of a head, how much turns with the position; the rest passes as it is.
RotaryShare = Annotated[float, Field(gt=0.0, le=1.0)]


class RopeSpec(Spec):
    """Rotary positions: plain, or stretched by YaRN or as in Llama 3.1; the base itself is ModelSpec.rope_theta.

    Source: Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models", arXiv 2309.00071;
    Grattafiori et al. 2024, "The Llama 3 Herd of Models", arXiv 2407.21783.
    """

    kind: Literal["plain", "yarn", "llama3"] = "plain"
    # Pairs (2i, 2i+1) as DeepSeek stores them, instead of (i, i + d/2).
    interleaved: bool = False
    partial_rotary_factor: RotaryShare = 1.0
    factor: Annotated[float, Field(ge=1.0, le=1e4)] = 1.0
    original_max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    # Of "llama3": pairs that turn fewer than `low` times in the original context are stretched, more than `high` kept.
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    truncate: bool = True
    # On cos and sin; None derives it from the factor and the two below.
    attention_factor: Positive | None = None
    mscale: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0.0, le=100.0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "plain" and self.original_max_position_embeddings is None:
            raise ValueError(f"original_max_position_embeddings is needed when kind is {self.kind!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        return self

    @property
    def cos_sin_factor(self) -> float:
        """What cos and sin are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """What latent attention multiplies its softmax scale by (DeepSeek's mscale squared)."""
        if self.kind != "yarn" or not self.mscale_all_dim:
            return 1.0
        return _mscale(self.factor, self.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


class MlaSpec(Spec):
    """Multi-head latent attention: keys and values of all heads come out of one narrow latent.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, section 2.1.
    """

    # None: queries are projected straight from the hidden state.
    q_lora_rank: Rank | None = None
    kv_lora_rank: Rank
    qk_nope_head_dim: HeadDim
    qk_rope_head_dim: HeadDim
    v_head_dim: HeadDim


class SlidingSpec(Spec):
    """What layers that see a window have of their own: query heads, and plain rotary positions.

    Source: StepFun 2026, "Step 3.5 Flash", arXiv 2602.10604.
    """

    num_attention_heads: Annotated[int, Field(ge=1, le=1024)]
    rope_theta: Annotated[float, Field(ge=1.0, le=1e9)]
    partial_rotary_factor: RotaryShare = 1.0


class Kept(NamedTuple):
    """The shape of a token's keys and values in a cache; latent attention's values are the first of its key's."""

    num_heads: int
    key_dim: int
    value_dim: int
    shares_keys: bool = False

    @property
    def num_values(self) -> int:
        """How many numbers are stored."""
        return self.num_heads * (self.key_dim + (0 if self.shares_keys else self.value_dim))


class AttentionSpec(Spec):
    """What differs between families besides the number of heads."""

    # "head" normalises each head by itself, "projection" all heads of queries (and of keys) together.
    qk_norm: Literal["none", "head", "projection"] = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    clip_qkv: Positive | None = None
    # One learned score a head that takes part in the softmax and carries no value.
    sinks: bool = False
    # The layers of `sliding_layers` see this many tokens, their own included.
    sliding_window: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    sliding_layers: Annotated[tuple[LayerIndex, ...], Field(max_length=512)] = ()
    # None: those layers have the heads and positions of all others.
    sliding: SlidingSpec | None = None
    # Each head's output is weighed by the sigmoid of a map of the hidden state (Step-3.5).
    head_gate: bool = False
    mla: MlaSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.sliding_layers) != (self.sliding_window is not None):
            raise ValueError("sliding_window and sliding_layers are given together or not at all")
        if list(self.sliding_layers) != sorted(set(self.sliding_layers)):
            raise ValueError("sliding_layers must be ascending and without repeats")
        if self.sliding is not None and not self.sliding_layers:
            raise ValueError("sliding must be null when there are no sliding_layers")
        if self.mla is not None and self.model_fields_set - {"mla"} and self != AttentionSpec(mla=self.mla):
            raise ValueError(
                "latent attention has no query and key norms, biases, clipping, sinks, gates or windows"
            )
        return self

    def window_of(self, layer: int) -> int | None:
        """How many tokens a layer sees, or None for all."""
        return self.sliding_window if layer in self.sliding_layers else None
