"""Closed schemas of config.json: what each family may say, and which of it must have one value only.

Keys that change nothing here (training rates, caches, versions) are read and forgotten; keys that would change
the computation are accepted only with the value that this decoder computes; all others are refused by name.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from moe_core.spec import CapacitySpec, GateSpec, ModelSpec, MoeSpec, TemperatureSpec
from moe_core.spec.base import Spec
from moe_core.spec.gate import SoftmaxTopk
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.twins import TwinsSpec

Ids = int | list[int] | None


class RopeParameters(Spec):
    """Rotary positions as transformers 5 writes them; only the plain kind is computed here."""

    rope_type: Literal["default"] = "default"
    rope_theta: float | None = None
    partial_rotary_factor: float | None = Field(default=None, ge=1.0, le=1.0)


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
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    sliding_window: None = None
    quantization_config: None = None
    is_encoder_decoder: Literal[False] = False
    # Of no effect on the computation.
    architectures: list[str] | None = Field(default=None, max_length=4)
    pad_token_id: int | None = None
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    pretraining_tp: int = 1
    use_cache: bool = True
    dtype: str | None = None
    torch_dtype: str | None = None
    transformers_version: str | None = None
    name_or_path: str | None = Field(default=None, alias="_name_or_path")
    rope_interleaved: Literal[False] = False
    is_llama_config: bool | None = None
    transformers_js: dict[str, Any] | None = Field(default=None, alias="transformers.js_config")

    default_theta: ClassVar[float] = 10_000.0

    @field_validator("rope_scaling", mode="before")
    @classmethod
    def _old_rope_type(cls, value: Any) -> Any:
        # Older files spell the key "type".
        if isinstance(value, dict) and "type" in value and "rope_type" not in value:
            return {**{k: v for k, v in value.items() if k != "type"}, "rope_type": value["type"]}
        return value

    @model_validator(mode="after")
    def _one_theta(self) -> Self:
        given = {theta for theta in self._thetas() if theta is not None}
        if len(given) > 1:
            raise ValueError(f"rope_theta is given with different values: {sorted(given)}")
        return self

    def _thetas(self) -> list[float | None]:
        parts = (self.rope_parameters, self.rope_scaling)
        return [self.rope_theta, *(part.rope_theta for part in parts if part is not None)]

    def theta(self) -> float:
        """The base of rotary positions, wherever it was written."""
        return next((theta for theta in self._thetas() if theta is not None), self.default_theta)

    def moe_part(self) -> MoeSpec | None:
        """The expert part; None for a dense family."""
        return None

    def to_spec(self) -> ModelSpec:
        """The specification that these keys describe."""
        heads = self.num_attention_heads
        eos = self.eos_token_id
        moe = self.moe_part()
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
                "tie_word_embeddings": self.tie_word_embeddings,
                "bos_token_id": self.bos_token_id,
                "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
                "moe": None if moe is None else moe.model_dump(),
            }
        )


class LlamaConfig(DecoderConfig):
    """Llama and its kin (SmolLM2)."""


class MixtralConfig(DecoderConfig):
    """Mixtral: experts of the full width in every layer."""

    num_key_value_heads: int | None = 8
    num_local_experts: int = Field(default=8, ge=1, le=1024)
    num_experts_per_tok: int = 2
    num_hidden_layers: int = Field(ge=1, le=512)
    rms_norm_eps: float = 1e-5
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.0
    router_jitter_noise: float = 0.0

    default_theta: ClassVar[float] = 1e6

    def moe_part(self) -> MoeSpec:
        """Every layer holds experts."""
        return MoeSpec.parse(
            {
                "moe_layers": tuple(range(self.num_hidden_layers)),
                "num_experts": self.num_local_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.intermediate_size,
            }
        )


class TurnoutMoeConfig(DecoderConfig):
    """Turnout's own: experts in chosen layers, perhaps narrower, perhaps with a shared one."""

    num_local_experts: int
    num_experts_per_tok: int
    moe_layers: list[int] = Field(max_length=512)
    moe_intermediate_size: int
    num_shared_experts: int = 0
    shared_intermediate_size: int | None = None
    norm_topk_prob: bool = True
    router_temperature: float = 1.0
    router_temperature_schedule: TemperatureSpec | None = None
    router_gate: GateSpec = SoftmaxTopk()
    router_capacity: CapacitySpec | None = None
    router_twins: TwinsSpec | None = None
    expert_quantisation: ExpertQuantSpec | None = None

    def moe_part(self) -> MoeSpec:
        """The expert part as written."""
        return MoeSpec.parse(
            {
                "moe_layers": self.moe_layers,
                "num_experts": self.num_local_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.moe_intermediate_size,
                "num_shared_experts": self.num_shared_experts,
                "shared_intermediate_size": self.shared_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                "temperature": self.router_temperature,
                "temperature_schedule": self.router_temperature_schedule,
                "gate": self.router_gate,
                "capacity": self.router_capacity,
                "twins": self.router_twins,
                "quantisation": self.expert_quantisation,
            }
        )


BY_FAMILY: dict[str, type[DecoderConfig]] = {
    "llama": LlamaConfig,
    "mixtral": MixtralConfig,
    "turnout_moe": TurnoutMoeConfig,
}
