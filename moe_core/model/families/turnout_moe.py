"""Turnout's own mixture over Llama: experts in chosen layers, perhaps narrower, perhaps with a shared one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moe_core.model.families.family import Family
from moe_core.model.families.mixtral import NAMES
from moe_core.model.families.schemas import DecoderConfig
from moe_core.spec import CapacitySpec, GateSpec, ModelSpec, MoeSpec, TemperatureSpec
from moe_core.spec.gate import SoftmaxTopk
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.twins import TwinsSpec


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
    attention_bias: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: None = None

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


FAMILY = Family("turnout_moe", "TurnoutMoeForCausalLM", TurnoutMoeConfig, _keys, NAMES, in_transformers=False)
