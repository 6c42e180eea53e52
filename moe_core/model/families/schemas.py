"""The closed schema of config.json that all families share; each one adds its own keys in a file of its own.

Keys that change nothing here (training rates, caches, versions) are read and forgotten; keys that would change
the computation, another family's too, are accepted only with the value that this decoder computes; all others are
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from moe_core.model.families.neutral import NEUTRAL, without_neutral
from moe_core.model.families.rope import RopeParameters
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.attention import AttentionSpec
from moe_core.spec.base import Spec
from moe_core.spec.model import Activation

Ids = int | list[int] | None


class QuantisationConfig(Spec):
    """How released weights are stored; names and dtypes in the files say it again, and are what counts."""

    quant_method: Literal["fp8", "mxfp4"]
    # One value only.
    fmt: Literal["e4m3"] = "e4m3"
    expert_dtype: Literal["fp8"] = "fp8"
    weight_block_size: tuple[Literal[128], Literal[128]] = (128, 128)
    # Of no effect on the weights.
    activation_scheme: str | None = None
    modules_to_not_convert: list[str] | None = Field(default=None, max_length=4096)
    modules_to_convert: list[str] | None = Field(default=None, max_length=4096)
    # Whether the factors of blocks are powers of two, which may then be stored as float32 or as their exponents.
    scale_fmt: Literal["ue8m0", "float"] | None = None
    # Everything is widened here.
    dequantize: bool | None = None


class DecoderConfig(Spec):
    """Keys that all families share."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: RopeParameters | None = None
    rope_scaling: RopeParameters | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: Ids = None
    # One value only.
    hidden_act: Activation = "silu"
    attention_bias: bool = False
    mlp_bias: Literal[False] = False
    sliding_window: int | None = None
    quantization_config: QuantisationConfig | None = None
    is_encoder_decoder: Literal[False] = False
    # Of no effect on the computation.
    architectures: list[str] | None = Field(default=None, max_length=4)
    pad_token_id: int | None = None
    attention_dropout: float | None = 0.0
    initializer_range: float = 0.02
    pretraining_tp: int | None = 1
    use_cache: bool = True
    dtype: str | None = None
    torch_dtype: str | None = None
    transformers_version: str | None = None
    name_or_path: str | None = Field(default=None, alias="_name_or_path")
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.0
    rope_interleaved: Literal[False] = False
    is_llama_config: bool | None = None
    transformers_js: dict[str, Any] | None = Field(default=None, alias="transformers.js_config")

    default_theta: ClassVar[float] = 10_000.0
    # Positions where no key says how they are stretched; an empty `rope_parameters` says that they are not.
    default_rope: ClassVar[RopeParameters] = RopeParameters()
    # What other families' keys must say here, where that is not "none of it".
    also_neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _says_nothing_new(cls, data: Any) -> Any:
        names = {name for key, field in cls.model_fields.items() for name in (key, field.alias or key)}
        return without_neutral(data, names, {**NEUTRAL, **cls.also_neutral})

    @model_validator(mode="after")
    def _one_theta(self) -> Self:
        given = {theta for theta in self._thetas() if theta is not None}
        if len(given) > 1:
            raise ValueError(f"rope_theta is given with different values: {sorted(given)}")
        return self

    def _stated_rope(self) -> RopeParameters | None:
        """What says how positions turn: `rope_scaling` unless it is empty, and then nothing of `rope_parameters`.

        Source: `convert_rope_params_to_dict` of transformers 5.23.
        """
        if self.rope_scaling is not None and self.rope_scaling.model_fields_set:
            return self.rope_scaling
        return self.rope_parameters

    def _thetas(self) -> list[float | None]:
        stated = self._stated_rope()
        return [self.rope_theta, None if stated is None else stated.rope_theta]

    def theta(self) -> float:
        """The base of rotary positions, wherever it was written."""
        return next((theta for theta in self._thetas() if theta is not None), self.default_theta)

    def moe_part(self) -> MoeSpec | None:
        """The expert part; None for a dense family."""
        return None

    def attention_part(self) -> AttentionSpec:
        """What differs from plain attention."""
        return AttentionSpec(qkv_bias=self.attention_bias, o_bias=self.attention_bias)

    def more_fields(self) -> dict[str, Any]:
        """Fields of the specification that a family sets in its own way."""
        return {}

    def to_spec(self) -> ModelSpec:
        """The specification that these keys describe."""
        heads = self.num_attention_heads
        eos = self.eos_token_id
        moe = self.moe_part()
        rope = self._stated_rope() or self.default_rope
        return ModelSpec.parse(
            {
                "family": self.model_type,
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": heads,
                "num_key_value_heads": self.num_key_value_heads or heads,
                "head_dim": self.head_dim or self.hidden_size // max(heads, 1),
                "max_position_embeddings": self.max_position_embeddings,
                "rms_norm_eps": self.rms_norm_eps,
                "rope_theta": self.theta(),
                "rope": rope.to_rope(self.max_position_embeddings, interleaved=self.interleaved()),
                "attention": self.attention_part(),
                "activation": self.hidden_act,
                "tie_word_embeddings": self.tie_word_embeddings,
                "bos_token_id": self.bos_token_id,
                "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
                "moe": None if moe is None else moe.model_dump(),
                **self.more_fields(),
            }
        )

    def interleaved(self) -> bool:
        """Whether rotary pairs stand side by side."""
        return False
