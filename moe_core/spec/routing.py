"""Business domains, the experts that they are mapped to, and how the router should heed them."""

from __future__ import annotations

import random
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_core.errors import SpecError
from moe_core.spec.base import Code, ExpertIndex, Spec, Weight

ExpertSet = Annotated[tuple[ExpertIndex, ...], Field(max_length=1024)]
PriorMode = Literal["none", "bias", "mask"]


class DomainSpec(Spec):
    """One business domain with its names and its experts."""

    code: Code
    name_en: Annotated[str, Field(min_length=1, max_length=200)]
    name_zh: Annotated[str, Field(min_length=1, max_length=200)]
    experts: Annotated[ExpertSet, Field(min_length=1)]


class RoutingSpec(Spec):
    """The map from domains to experts, and the weights of the losses that teach it to the router."""

    domains: Annotated[tuple[DomainSpec, ...], Field(max_length=256)] = ()
    general_experts: ExpertSet = ()
    temperature: Annotated[float, Field(ge=1e-3, le=100.0)] = 1.0
    label_weight: Weight = 0.5
    balance_weight: Weight = 1.0
    z_weight: Weight = 0.0
    prior_mode: PriorMode = "bias"
    prior_strength: Annotated[float, Field(ge=0.0, le=50.0)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        codes = [domain.code for domain in self.domains]
        repeated = sorted({code for code in codes if codes.count(code) > 1})
        if repeated:
            raise ValueError(f"domain codes must be unique; repeated: {', '.join(repeated)}")
        for owner, experts in [
            *((d.code, d.experts) for d in self.domains),
            ("general", self.general_experts),
        ]:
            if len(set(experts)) != len(experts):
                raise ValueError(f"{owner}: an expert is named twice in {list(experts)}")
        return self

    @property
    def codes(self) -> tuple[str, ...]:
        """The domain codes, in the order of every per-domain table."""
        return tuple(domain.code for domain in self.domains)

    def index_of(self, code: str | None) -> int:
        """The row of a domain in every per-domain table; -1 for None and for an unknown code."""
        return self.codes.index(code) if code in self.codes else -1

    def check_fits(self, num_experts: int) -> None:
        """Raise SpecError when an expert index is outside the layout."""
        for domain in self.domains:
            if max(domain.experts) >= num_experts:
                raise SpecError(
                    f"domain {domain.code!r} names expert {max(domain.experts)}, but the layout has "
                    f"{num_experts} experts (0 to {num_experts - 1})"
                )
        if self.general_experts and max(self.general_experts) >= num_experts:
            raise SpecError(
                f"general expert {max(self.general_experts)} is outside the layout's {num_experts} experts"
            )

    def label_matrix(self, num_experts: int) -> tuple[tuple[float, ...], ...]:
        """(num_domains, num_experts): 1.0 where the expert is mapped to the domain, else 0.0."""
        self.check_fits(num_experts)
        return tuple(
            tuple(1.0 if expert in domain.experts else 0.0 for expert in range(num_experts))
            for domain in self.domains
        )

    def deranged(self, seed: int) -> RoutingSpec:
        """The same domains with expert sets exchanged so that none keeps an expert of its own.

        It is the control of a tuning run: whatever the labels teach here, they teach wrongly.
        Raises SpecError when the expert sets overlap so much that no exchange is possible.
        """
        sets = [domain.experts for domain in self.domains]
        order = _derangement(sets, random.Random(seed))
        domains = tuple(
            domain.model_copy(update={"experts": sets[source]})
            for domain, source in zip(self.domains, order, strict=True)
        )
        return self.model_copy(update={"domains": domains})


def _derangement(sets: list[tuple[int, ...]], rng: random.Random) -> list[int]:
    """A permutation p with sets[p[i]] disjoint from sets[i], by augmenting paths in a shuffled order."""
    taken_by: dict[int, int] = {}
    choices = [
        rng.sample(fitting, len(fitting))
        for mine in sets
        for fitting in [[j for j, other in enumerate(sets) if not set(mine) & set(other)]]
    ]

    def assign(domain: int, seen: set[int]) -> bool:
        for source in choices[domain]:
            if source in seen:
                continue
            seen.add(source)
            if source not in taken_by or assign(taken_by[source], seen):
                taken_by[source] = domain
                return True
        return False

    for domain in rng.sample(range(len(sets)), len(sets)):
        if not assign(domain, set()):
            raise SpecError(
                f"domain number {domain} cannot be given another domain's experts: the expert sets overlap; "
                "map at least two domains to experts of their own"
            )
    order = [0] * len(sets)
    for source, domain in taken_by.items():
        order[domain] = source
    return order
