"""Turnout's own mixture: whatever a ModelSpec with experts can say, so that no model is without a way to the disk.

Over a Llama it says only which layers hold which experts. What other families have, and what becomes of their models
(packed experts, twins, gates of another kind), it says in the words of ModelSpec itself.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moe_core.model.families.family import Family
from moe_core.model.families.mixtral import NAMES
from moe_core.model.families.rope import PartialRopeParameters
from moe_core.model.families.schemas import DecoderConfig
from moe_core.spec import CapacitySpec, GateSpec, ModelSpec, MoeSpec, TemperatureSpec
from moe_core.spec.attention import AttentionSpec
from moe_core.spec.expert_kinds import ExpertKinds
from moe_core.spec.gate import SoftmaxTopk
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.twins import TwinsSpec

_CLAMPS = ("expert_clamps", "dense_clamps")
_AS_WRITTEN = ("parallel_blocks", "swiglu_alpha", "swiglu_limit", "zero_centred_norms", *_CLAMPS)


class TurnoutMoeConfig(DecoderConfig):
    """The expert part as MoeSpec says it."""

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
    attention_quantisation: ExpertQuantSpec | None = None
    head_quantisation: ExpertQuantSpec | None = None
    expert_bias: bool = False
    shared_expert_gate: bool = False
    attention: AttentionSpec = AttentionSpec()
    rope_interleave: bool = False
    parallel_blocks: bool = False
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    expert_clamps: list[float] = Field(default=[], max_length=512)
    dense_clamps: list[float] = Field(default=[], max_length=512)
    zero_centred_norms: bool = False
    rope_parameters: PartialRopeParameters | None = None
    expert_kinds: ExpertKinds | None = None
    free_expert_cost: float = 0.75
    # Said in `attention`.
    attention_bias: Literal[False] = False
    sliding_window: None = None

    def attention_part(self) -> AttentionSpec:
        """As written."""
        return self.attention

    def interleaved(self) -> bool:
        """As written."""
        return self.rope_interleave

    def more_fields(self) -> dict[str, Any]:
        """As written."""
        return {name: getattr(self, name) for name in _AS_WRITTEN}

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
                "shared_gate": self.shared_expert_gate,
                "norm_topk_prob": self.norm_topk_prob,
                "temperature": self.router_temperature,
                "temperature_schedule": self.router_temperature_schedule,
                "gate": self.router_gate,
                "capacity": self.router_capacity,
                "twins": self.router_twins,
                "quantisation": self.expert_quantisation,
                "attention_quantisation": self.attention_quantisation,
                "head_quantisation": self.head_quantisation,
                "expert_bias": self.expert_bias,
                "expert_kinds": self.expert_kinds,
                "free_expert_cost": self.free_expert_cost,
            }
        )


# What a config.json that does not say it means.
FREE_EXPERT_COST: float = MoeSpec.model_fields["free_expert_cost"].default


def _keys(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    assert moe is not None
    return {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_layers": list(moe.moe_layers),
        "moe_intermediate_size": moe.moe_intermediate_size,
        "num_shared_experts": moe.num_shared_experts,
        "shared_intermediate_size": moe.shared_intermediate_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "router_temperature": moe.temperature,
        **_gate_keys(moe),
        **_other_keys(spec, moe),
    }


def _other_keys(spec: ModelSpec, moe: MoeSpec) -> dict[str, Any]:
    """What a mixture over Llama has not: older readers know only that."""
    keys: dict[str, Any] = {}
    if spec.attention != AttentionSpec():
        keys["attention"] = spec.attention.model_dump(mode="json")
    for name, value in (
        ("rope_interleave", spec.rope.interleaved),
        ("parallel_blocks", spec.parallel_blocks),
        ("zero_centred_norms", spec.zero_centred_norms),
        ("expert_bias", moe.expert_bias),
        ("shared_expert_gate", moe.shared_gate),
    ):
        if value:
            keys[name] = True
    keys |= {name: list(getattr(spec, name)) for name in _CLAMPS if getattr(spec, name)}
    if spec.activation == "clamped":
        keys |= {"swiglu_alpha": spec.swiglu_alpha, "swiglu_limit": spec.swiglu_limit}
    return keys


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
        keys["expert_quantisation"] = moe.quantisation.model_dump(exclude_none=True)
    for name in ("attention_quantisation", "head_quantisation"):
        packing = getattr(moe, name)
        if packing is not None:
            keys[name] = packing.model_dump(exclude_none=True)
    if moe.expert_kinds is not None:
        keys["expert_kinds"] = [kind.model_dump() for kind in moe.expert_kinds]
    if moe.expert_kinds is not None or moe.free_expert_cost != FREE_EXPERT_COST:
        keys["free_expert_cost"] = moe.free_expert_cost
    return keys


FAMILY = Family("turnout_moe", "TurnoutMoeForCausalLM", TurnoutMoeConfig, _keys, NAMES, in_transformers=False)
