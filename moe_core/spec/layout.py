"""An expert layout: how a dense model becomes a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec.base import Fault, LayerIndex, Spec, refuse
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.expert_kinds import ExpertKinds, complaint_of, widest
from moe_core.spec.gate import GateSpec, SoftmaxTopk, gate_faults
from moe_core.spec.likeness import fits_mixtral
from moe_core.spec.model import ModelSpec, MoeSpec, Width
from moe_core.spec.temperature import TemperatureSpec


class LayoutSpec(Spec):
    """Layers, experts and top-k to lay over a dense model; widths of None mean the dense width."""

    moe_layers: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=512)]
    """Numbers of the layers that get experts, ascending."""
    num_experts: Annotated[int, Field(ge=1, le=1024)] = 8
    """Routed experts in each of them."""
    top_k: Annotated[int, Field(ge=1, le=64)] = 2
    """How many of them a token sees."""
    num_shared_experts: Annotated[int, Field(ge=0, le=1)] = 0
    """1 for an expert that every token sees beside the routed ones."""
    moe_intermediate_size: Width | None = None
    """Width of a routed expert; null for the dense width."""
    shared_intermediate_size: Width | None = None
    """Width of the shared expert; null for the dense width."""
    norm_topk_prob: bool = True
    """Whether the weights of the chosen are made to sum to one."""
    temperature: Annotated[float, Field(ge=1e-3, le=100.0)] = 1.0
    """Divides the logits of every gate; a schedule stands in its place."""
    temperature_schedule: TemperatureSpec | None = None
    """A temperature that moves while the gate learns, instead of `temperature`."""
    gate: GateSpec = SoftmaxTopk()
    """How tokens find their experts."""
    capacity: CapacitySpec | None = None
    """How many tokens an expert may take; null for no limit."""
    expert_kinds: ExpertKinds | None = None
    """What each expert is, where they are not all alike: kinds and widths, `moe_intermediate_size` left out.
    """
    free_expert_cost: Annotated[float, Field(gt=0.0, le=10.0)] = 0.75
    """What a token on an expert without a feed-forward counts for when loads are evened; others count by their FLOPs.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[Fault]:
        """Everything that contradicts itself, so that whoever wrote it is told at once."""
        if self.top_k > self.num_experts:
            yield ("top_k",), CORE.say("top_k_over_experts", top_k=self.top_k, num_experts=self.num_experts)
        if self.temperature_schedule is not None and self.temperature != 1.0:
            yield ("temperature",), CORE.say("two_temperatures")
        if self.expert_kinds is not None:
            complaint = complaint_of(self.expert_kinds, self.num_experts)
            if complaint is not None:
                yield ("expert_kinds",), complaint
            if self.moe_intermediate_size is not None:
                yield ("moe_intermediate_size",), CORE.say("kinds_have_widths")
        yield from gate_faults(self.gate, self.capacity, self.num_experts, self.top_k)
        if list(self.moe_layers) != sorted(set(self.moe_layers)):
            yield ("moe_layers",), CORE.say("layers_unordered")
        if self.shared_intermediate_size is not None and not self.num_shared_experts:
            yield ("shared_intermediate_size",), CORE.say("shared_width_alone")

    def applied_to(self, dense: ModelSpec) -> ModelSpec:
        """The mixture that this layout makes of a dense model; raises SpecError when it does not fit."""
        if dense.moe is not None:
            raise SpecError.of("already_a_mixture", family=dense.family)
        if self.moe_layers[-1] >= dense.num_hidden_layers:
            num_layers = dense.num_hidden_layers
            raise SpecError.of(
                "layer_outside", layer=self.moe_layers[-1], num_layers=num_layers, last=num_layers - 1
            )
        moe = MoeSpec(
            moe_layers=self.moe_layers,
            num_experts=self.num_experts,
            top_k=self.top_k,
            moe_intermediate_size=self.expert_width(dense),
            num_shared_experts=self.num_shared_experts,
            shared_intermediate_size=self._shared_width(dense),
            norm_topk_prob=self.norm_topk_prob,
            temperature=self.temperature,
            temperature_schedule=self.temperature_schedule,
            gate=self.gate,
            capacity=self.capacity,
            expert_kinds=self.expert_kinds,
            free_expert_cost=self.free_expert_cost,
        )
        mixture = ModelSpec.parse({**dense.model_dump(), "family": "turnout_moe", "moe": moe.model_dump()})
        return mixture.model_copy(update={"family": "mixtral"}) if fits_mixtral(mixture) else mixture

    def expert_width(self, dense: ModelSpec) -> int:
        """The width of an expert over a dense model; of the widest where they are of several kinds."""
        of_kinds = None if self.expert_kinds is None else widest(self.expert_kinds)
        return of_kinds or self.moe_intermediate_size or dense.intermediate_size

    def _shared_width(self, dense: ModelSpec) -> int | None:
        if not self.num_shared_experts:
            return None
        return self.shared_intermediate_size or dense.intermediate_size
