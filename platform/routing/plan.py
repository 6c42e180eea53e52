"""A domain map as somebody writes it: every field bounded, every rule checked before anything is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from common.errors import Invalid
from common.figures import sentences
from common.told import told_faults
from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec import RoutingSpec
from moe_core.spec.base import Fault, Spec, Weight, refuse
from moe_core.spec.routing import FloorShare, PriorLayers, PriorMode, PriorStrength
from routing.models import CODE, NUM_COLOURS

MAX_DOMAINS = 64
MAX_EXPERTS = 1024
MAX_EXAMPLES = 200
Expert = Annotated[int, Field(ge=0, lt=MAX_EXPERTS, strict=True)]
Example = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]


class DomainPlan(Spec):
    """One domain: its code, its names in both languages, a few examples, its experts."""

    code: Annotated[str, Field(pattern=CODE)]
    name_en: Name
    name_zh: Name
    examples: Annotated[tuple[Example, ...], Field(max_length=MAX_EXAMPLES)] = ()
    experts: Annotated[tuple[Expert, ...], Field(min_length=1, max_length=MAX_EXPERTS)]
    colour: Annotated[int, Field(ge=0, le=NUM_COLOURS)] = 0

    @field_validator("experts")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


class PolicyPlan(Spec):
    """How hard the map pulls: loss weights of the tuning, and the prior that a request's domain adds."""

    label_weight: Weight = 0.5
    balance_weight: Weight = 1.0
    z_weight: Weight = 0.0
    prior_mode: PriorMode = "bias"
    prior_strength: PriorStrength = 1.0
    prior_floor: FloorShare = 0.5
    # Layers of the model that do otherwise, by their number.
    prior_layers: PriorLayers = {}


class MapPlan(Spec):
    """The whole map."""

    num_experts: Annotated[int, Field(ge=2, le=MAX_EXPERTS, strict=True)] = 8
    domains: Annotated[tuple[DomainPlan, ...], Field(min_length=1, max_length=MAX_DOMAINS)]
    general_experts: Annotated[tuple[Expert, ...], Field(max_length=MAX_EXPERTS)] = ()
    policy: PolicyPlan = PolicyPlan()

    @field_validator("general_experts")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[Fault]:
        codes = [domain.code for domain in self.domains]
        repeated = sorted({code for code in codes if codes.count(code) > 1})
        if repeated:
            yield ("domains",), CORE.say("domains_repeated", codes=", ".join(repeated))
        owners = [
            (("domains", row, "experts"), one.code, one.experts) for row, one in enumerate(self.domains)
        ]
        for place, owner, experts in [*owners, (("general_experts",), "general", self.general_experts)]:
            if experts and max(experts) >= self.num_experts:
                yield (
                    place,
                    f"{owner} names expert {max(experts)}, but a layer has {self.num_experts} (0 to {self.num_experts - 1})",
                )
        for place, owner, experts in owners:
            both = sorted(set(experts) & set(self.general_experts))
            if both:
                yield place, f"expert {both[0]} is general and cannot belong to {owner} as well"

    def routing_spec(self) -> RoutingSpec:
        """The map as moe_core reads it."""
        domains = [
            domain.model_dump(include={"code", "name_en", "name_zh", "experts"}) for domain in self.domains
        ]
        return RoutingSpec.parse(
            {"domains": domains, "general_experts": self.general_experts, **self.policy.model_dump()}
        )


def checked_plan(plan: Any) -> MapPlan:
    """Return the plan if it keeps every rule, else raise Invalid with the reasons."""
    try:
        parsed = plan if isinstance(plan, MapPlan) else MapPlan.parse(plan)
        parsed.routing_spec()
    except SpecError as error:
        fields = told_faults(error, "plan")
        raise Invalid(sentences(*fields.values()), fields=fields) from error
    return parsed
