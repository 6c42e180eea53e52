"""config.json of Step-3.5 and Step-3.7 as released and as transformers writes it, and what each layer has by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from moe_core.errors import SpecError
from moe_core.model.families.rope import PartialRopeParameters, RopeParameters
from moe_core.model.families.schemas import DecoderConfig
from moe_core.model.families.two_names import one_name
from moe_core.spec.base import Spec

AttentionKind = Literal["full_attention", "sliding_attention"]
Layers = Field(default=None, max_length=1024)
# One number for all layers, or one a layer.
Numbers = Annotated[list[float], Field(max_length=1024)] | float | None
# The names of released files beside those of transformers.
OTHER_NAMES = {
    "num_attention_groups": "num_key_value_heads",
    "moe_num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
    "moe_top_k": "num_experts_per_tok",
    "share_expert_dims": "share_expert_dim",
    "num_mtp_layers": "num_nextn_predict_layers",
}
FIRST_EXPERT_LAYER = 3
# transformers writes these into every part of a configuration.
NOT_OF_TEXT = (
    "output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward", "id2label", "label2id",
    "problem_type",
)  # fmt: skip


class OwnHeads(Spec):
    """`attention_other_setting` of released files: what layers with a window have."""

    attention_type: Literal["sliding_attention"] = "sliding_attention"
    num_attention_heads: int
    num_attention_groups: int | None = None
    head_dim: int | None = None
    true_head_dim: int | None = None


class LayerHeads(Spec):
    """One layer of transformers' `per_layer_config`."""

    num_attention_heads: int


class RopeByKind(RopeParameters):
    """`rope_parameters` as transformers writes them: one set for each kind of layer."""

    full_attention: PartialRopeParameters | None = None
    sliding_attention: PartialRopeParameters | None = None

    @model_validator(mode="after")
    def _only_by_kind(self) -> Self:
        stray = sorted(self.model_fields_set - {"full_attention", "sliding_attention"})
        if stray:
            raise ValueError(f"{stray[0]} must be given below full_attention or sliding_attention")
        return self


class Step3p5Keys(DecoderConfig):
    """Step-3.5's keys, as released and as transformers writes them, with the defaults of transformers."""

    num_hidden_layers: int = Field(ge=1, le=512)
    num_key_value_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 128_000
    rms_norm_eps: float = 1e-5
    moe_intermediate_size: int = 1280
    n_routed_experts: int = 288
    num_experts_per_tok: int = 8
    share_expert_dim: int = 1280
    moe_router_scaling_factor: float = 1.0
    num_nextn_predict_layers: int = Field(default=0, ge=0, le=64)
    layer_types: list[AttentionKind] | None = Layers
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = Layers
    moe_layers_enum: str | list[int] | None = Field(default=None, max_length=8192)
    num_sliding_attention_heads: int | None = None
    attention_other_setting: OwnHeads | None = None
    per_layer_config: dict[Annotated[int, Field(strict=False)], LayerHeads] | None = Field(
        default=None, max_length=512
    )
    rope_theta: Numbers = None  # type: ignore[assignment]
    partial_rotary_factors: Annotated[list[float], Field(max_length=1024)] | None = None
    rope_parameters: RopeByKind | None = None
    swiglu_limits: list[float | None] | None = Layers
    swiglu_limits_shared: list[float | None] | None = Layers
    query_pre_attn_scalar: float | None = None
    # One value only.
    attention_bias: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    zero_centered: Literal[True] = True
    use_qk_norm: Literal[True] = True
    use_head_wise_attn_gate: Literal[True] = True
    att_impl_type: Literal["GQA"] = "GQA"
    sink: Literal[False] = False
    use_rope_layers: list[Literal[True]] | None = Layers
    yarn_only_types: list[Literal["full_attention"]] | None = Layers
    use_moe: Literal[True] = True
    moe_layer_offset: Literal[0] = 0
    moe_every_n_layer: Literal[1] = 1
    moe_router_activation: Literal["sigmoid"] = "sigmoid"
    use_moe_router_bias: Literal[True] = True
    norm_expert_weight: Literal[True] = True
    # Of no effect on the computation.
    need_fp32_gate: bool | None = None
    max_seq_len: int | None = None
    mtp_layer_types: list[str] | None = Layers
    mtp_mlp_layer_types: list[str] | None = Layers

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, data: Any) -> Any:
        data = text_of(data)
        for other, kept in OTHER_NAMES.items():
            data = one_name(data, kept, other)
        return data

    def _thetas(self) -> list[float | None]:
        return []

    def a_layer(self, key: str, values: Sequence[Any]) -> list[Any]:
        """The values of the layers that are read; those for layers that predict further tokens may follow."""
        num_layers, more = self.num_hidden_layers, self.num_nextn_predict_layers
        if len(values) not in (num_layers, num_layers + more):
            raise ValueError(
                f"{key} has {len(values)} values for {num_layers} layers and {more} that predict further"
            )
        return list(values[:num_layers])

    def sliding_layers(self) -> list[int]:
        """The layers that see a window."""
        kinds = self.a_layer("layer_types", self.layer_types) if self.layer_types is not None else []
        return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]

    def sliding_heads(self) -> int:
        """Query heads of those layers."""
        own = self.attention_other_setting
        return self.num_sliding_attention_heads or (
            own.num_attention_heads if own else self.num_attention_heads
        )

    def expert_layers(self) -> list[int]:
        """The layers that hold experts, by either key."""
        if self.mlp_layer_types is not None:
            kinds = self.a_layer("mlp_layer_types", self.mlp_layer_types)
            return [layer for layer, kind in enumerate(kinds) if kind == "sparse"]
        said = self.moe_layers_enum
        if said is None:
            return list(range(FIRST_EXPERT_LAYER, self.num_hidden_layers))
        numbers = [number for number in said.split(",") if number.strip()] if isinstance(said, str) else said
        return sorted({int(number) for number in numbers} & set(range(self.num_hidden_layers)))

    def layers_of(self, kind: AttentionKind) -> list[int]:
        """The layers of one kind."""
        sliding = set(self.sliding_layers())
        return [n for n in range(self.num_hidden_layers) if (n in sliding) == (kind == "sliding_attention")]

    def rope_of(self, kind: AttentionKind) -> PartialRopeParameters:
        """The positions of one kind of layer: by `rope_parameters`, and else by the keys of released files.

        Both may be given. Raises ValueError where they contradict each other.
        """
        layers = self.layers_of(kind)
        released = self._released_rope(kind, layers)
        if self.rope_parameters is None or not self.rope_parameters.model_fields_set:
            return PartialRopeParameters.parse({key: value for key, (_, value) in released.items()})
        stated: PartialRopeParameters | None = getattr(self.rope_parameters, kind)
        if not layers:
            return stated or PartialRopeParameters()
        if stated is None:
            raise ValueError(f"rope_parameters lacks {kind}, which layer {layers[0]} is")
        self._check_alike(kind, stated, released)
        return stated

    def _released_rope(self, kind: AttentionKind, layers: list[int]) -> dict[str, tuple[str, Any]]:
        """What released files say of a kind, by the names of `rope_parameters`: where it is said, and the value."""
        said = {
            "rope_theta": ("rope_theta", self.common("rope_theta", self.rope_theta, layers)),
            "partial_rotary_factor": (
                "partial_rotary_factors",
                self.common("partial_rotary_factors", self.partial_rotary_factors, layers),
            ),
        }
        found: dict[str, tuple[str, Any]] = {key: pair for key, pair in said.items() if pair[1] is not None}
        stretched = self.rope_scaling if kind == "full_attention" else None
        more = {} if stretched is None else stretched.model_dump(exclude_none=True, exclude_unset=True)
        for key in found.keys() & more.keys():
            if found[key][1] != more[key]:
                raise ValueError(f"{found[key][0]} is {found[key][1]}, but rope_scaling says {more[key]}")
        return found | {key: ("rope_scaling", value) for key, value in more.items()}

    def _check_alike(
        self, kind: AttentionKind, stated: PartialRopeParameters, released: Mapping[str, tuple[str, Any]]
    ) -> None:
        """Raise ValueError where a key of released files would turn a kind of layer otherwise than `rope_parameters`."""
        turning = self._turning(stated)
        # What the others mean hangs on the type.
        for key in sorted(released, key=lambda key: key != "rope_type"):
            place, value = released[key]
            if self._turning(stated.model_copy(update={key: value})) != turning:
                raise ValueError(
                    f"{key} of {kind} is {turning[key]} by rope_parameters, but {place} says {value}; give one of them, "
                    "or the same in both"
                )

    def _turning(self, rope: PartialRopeParameters) -> dict[str, Any]:
        """What computes the positions, unsaid values filled in; where nothing can compute them, what is said."""
        theta = self.default_theta if rope.rope_theta is None else rope.rope_theta
        said = {**rope.model_dump(), "rope_theta": theta}
        try:
            return said | rope.to_rope(self.max_position_embeddings, interleaved=False).model_dump()
        except SpecError:
            return said

    def common(self, key: str, values: Numbers, layers: list[int]) -> float | None:
        """The one value that all these layers have."""
        if not isinstance(values, list):
            return values
        found = sorted({self.a_layer(key, values)[layer] for layer in layers})
        if len(found) > 1:
            raise ValueError(f"{key} must be the same in all layers of one kind, and is {found}")
        return found[0] if found else None

    def clamps(self, key: str) -> list[float]:
        """One bound a layer, 0 for none; nothing where there is none at all."""
        values = self.a_layer(key, getattr(self, key) or [0.0] * self.num_hidden_layers)
        return [value or 0.0 for value in values] if any(values) else []


def text_of(data: Any) -> Any:
    """The text part of a Step-3.7 configuration; any other as it is."""
    if not isinstance(data, dict) or not isinstance(data.get("text_config"), dict):
        return data
    outer = {
        key: data[key] for key in ("model_type", "tie_word_embeddings", "quantization_config") if key in data
    }
    inner = {key: value for key, value in data["text_config"].items() if key not in NOT_OF_TEXT}
    return {**inner, **outer}
