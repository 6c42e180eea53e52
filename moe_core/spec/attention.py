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
    """How positions beyond the original ones are reached: not at all, by YaRN, or as in Llama 3.1."""
    interleaved: bool = False
    """Pairs (2i, 2i+1) as DeepSeek stores them, instead of (i, i + d/2)."""
    partial_rotary_factor: RotaryShare = 1.0
    """The share of each head that turns with the position; the rest passes as it is."""
    factor: Annotated[float, Field(ge=1.0, le=1e4)] = 1.0
    """How many times longer than the original the context is."""
    original_max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Positions that the model was first trained on; needed unless the kind is "plain"."""
    beta_fast: Positive = 32.0
    """Of "yarn": pairs that turn more often than this in the original context are kept."""
    beta_slow: Positive = 1.0
    """Of "yarn": pairs that turn less often than this are stretched by the whole factor; between the two it fades."""
    low_freq_factor: Positive = 1.0
    """Of "llama3": pairs that turn fewer than so many times in the original context are stretched by the whole factor."""
    high_freq_factor: Positive = 4.0
    """Of "llama3": pairs that turn more than so many times are kept."""
    truncate: bool = True
    """Of "yarn": round the bounds of the fading to whole pairs."""
    attention_factor: Positive | None = None
    """On cos and sin; null derives it from the factor and the two below."""
    mscale: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Of "yarn": how strongly the factor scales cos and sin, over what `mscale_all_dim` gives (DeepSeek); null: as YaRN."""
    mscale_all_dim: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Of "yarn": the same for the whole head; latent attention has it squared on the scale of its softmax."""

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

    q_lora_rank: Rank | None = None
    """Width of the queries' latent; null: queries are projected straight from the hidden state."""
    kv_lora_rank: Rank
    """Width of the latent that keys and values of all heads come out of."""
    qk_nope_head_dim: HeadDim
    """Numbers of a query and key head that do not turn with the position."""
    qk_rope_head_dim: HeadDim
    """Numbers of a query and key head that do; the key has them once for all heads."""
    v_head_dim: HeadDim
    """Numbers of a value head."""


class SlidingSpec(Spec):
    """What layers that see a window have of their own: query heads, and plain rotary positions.

    Source: StepFun 2026, "Step 3.5 Flash", arXiv 2602.10604.
    """

    num_attention_heads: Annotated[int, Field(ge=1, le=1024)]
    """Query heads of these layers."""
    rope_theta: Annotated[float, Field(ge=1.0, le=1e9)]
    """The base of their rotary positions."""
    partial_rotary_factor: RotaryShare = 1.0
    """The share of each of their heads that turns with the position."""


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

    qk_norm: Literal["none", "head", "projection"] = "none"
    """Each head of queries and keys is normalised by itself ("head"), or all of queries and all of keys ("projection")."""
    qkv_bias: bool = False
    """Biases on the maps to queries, keys and values."""
    o_bias: bool = False
    """A bias on the map from heads back to the hidden state."""
    clip_qkv: Positive | None = None
    """Queries, keys and values are cut off at plus and minus this; null: not at all."""
    sinks: bool = False
    """One learned score a head that takes part in the softmax and carries no value."""
    sliding_window: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """The layers of `sliding_layers` see this many tokens, their own included."""
    sliding_layers: Annotated[tuple[LayerIndex, ...], Field(max_length=512)] = ()
    """Numbers of the layers that see a window, ascending."""
    sliding: SlidingSpec | None = None
    """What those layers have of their own; null: the heads and positions of all others."""
    head_gate: bool = False
    """Each head's output is weighed by the sigmoid of a map of the hidden state (Step-3.5)."""
    mla: MlaSpec | None = None
    """Latent attention in the place of plain heads; null for none."""

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
