"""A domain map as somebody writes it: every field bounded, every rule checked before anything is stored."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from common.errors import Invalid
from common.told import told
from moe_core.errors import SpecError
from moe_core.spec import RoutingSpec
from moe_core.spec.base import Spec, Weight
from moe_core.spec.routing import PriorMode
from routing.models import CODE, NUM_COLOURS

MAX_DOMAINS = 64
MAX_EXAMPLES = 200
Expert = Annotated[int, Field(ge=0, lt=1024, strict=True)]
Example = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]


class DomainPlan(Spec):
    """One domain: its code, its names in both languages, a few examples, its experts."""

    code: Annotated[str, Field(pattern=CODE)]
    name_en: Name
    name_zh: Name
    examples: Annotated[tuple[Example, ...], Field(max_length=MAX_EXAMPLES)] = ()
    experts: Annotated[tuple[Expert, ...], Field(min_length=1, max_length=1024)]
    colour: Annotated[int, Field(ge=0, le=NUM_COLOURS)] = 0

    @field_validator("experts")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


class PolicyPlan(Spec):
    """How hard the map pulls: loss weights of the tuning, and the prior that a request's domain adds."""

    label_weight: Weight = 0.5
    balance_weight: Weight = 1.0
    prior_mode: PriorMode = "bias"
    prior_strength: Annotated[float, Field(ge=0.0, le=50.0)] = 1.0


class MapPlan(Spec):
    """The whole map."""

    num_experts: Annotated[int, Field(ge=2, le=1024, strict=True)] = 8
    domains: Annotated[tuple[DomainPlan, ...], Field(min_length=1, max_length=MAX_DOMAINS)]
    general_experts: Annotated[tuple[Expert, ...], Field(max_length=1024)] = ()
    policy: PolicyPlan = PolicyPlan()

    @field_validator("general_experts")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        codes = [domain.code for domain in self.domains]
        repeated = sorted({code for code in codes if codes.count(code) > 1})
        if repeated:
            raise ValueError(f"domain codes must be unique; repeated: {', '.join(repeated)}")
        for owner, experts in [*((d.code, d.experts) for d in self.domains), ("general", self.general_experts)]:
            if experts and max(experts) >= self.num_experts:
                raise ValueError(
                    f"{owner} names expert {max(experts)}, but a layer has {self.num_experts} "
                    f"(0 to {self.num_experts - 1})"
                )
        for domain in self.domains:
            both = sorted(set(domain.experts) & set(self.general_experts))
            if both:
                raise ValueError(f"expert {both[0]} is general and cannot belong to {domain.code} as well")
        return self

    def routing_spec(self) -> RoutingSpec:
        """The map as moe_core reads it."""
        domains = [domain.model_dump(include={"code", "name_en", "name_zh", "experts"}) for domain in self.domains]
        return RoutingSpec.parse(
            {"domains": domains, "general_experts": self.general_experts, **self.policy.model_dump()}
        )


def checked_plan(plan: Any) -> MapPlan:
    """Return the plan if it keeps every rule, else raise Invalid with the reasons."""
    try:
        parsed = plan if isinstance(plan, MapPlan) else MapPlan.parse(plan)
        parsed.routing_spec()
    except SpecError as error:
        raise Invalid(told(str(error)), fields={"plan": told(str(error))}) from error
    return parsed
