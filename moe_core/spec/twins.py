"""Twins: experts that stand for one another, of which each token sees one."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from moe_core.sentences import CORE
from moe_core.spec.base import ExpertIndex, Spec

Hold = Annotated[float, Field(ge=0.0, le=1e4)]


class TwinsSpec(Spec):
    """Experts with the same root are twins; every token sees exactly one of each set of twins."""

    roots: Annotated[tuple[ExpertIndex, ...], Field(min_length=1, max_length=1024)]
    """For each expert the lowest number among its twins; its own for an expert without any."""
    hold: Hold | None = None
    """Null: a hash of the token's hidden state picks the twin. Otherwise the twin is seen that the gate scores highest
    (prior, noise and selection bias included), and the one that the hash picks has so much added to its logit: 0 leaves the
    choice to the gate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for expert, root in enumerate(self.roots):
            if root > expert or self.roots[root] != root:
                raise ValueError(f"the root of expert {expert} must be the lowest of its twins, not {root}")
        return self

    def has_twins(self, expert: int) -> bool:
        """Whether the expert has a twin."""
        return self.roots.count(self.roots[expert]) > 1

    def complaint(self, num_experts: int, top_k: int, num_groups: int = 1, topk_group: int = 1) -> str | None:
        """Why so many experts, in so many groups, cannot have these twins; None when they can."""
        if len(self.roots) != num_experts:
            return f"twins name {len(self.roots)} experts; num_experts is {num_experts}"
        if top_k > len(set(self.roots)):
            return CORE.say("top_k_over_twins", top_k=top_k, seen=len(set(self.roots)))
        seen = self.seen(num_groups, topk_group)
        if num_groups > 1 and top_k > seen:
            return CORE.say("top_k_over_twins_of_groups", top_k=top_k, seen=seen, groups=topk_group)
        return None

    def seen(self, num_groups: int = 1, topk_group: int = 1) -> int:
        """How many experts a token sees at least, one of each set of twins, in as many of the groups as are chosen."""
        size = len(self.roots) // num_groups
        groups = [self.roots[start : start + size] for start in range(0, len(self.roots), size)]
        return sum(sorted(len(set(group)) for group in groups)[:topk_group])

    def taking(self, sources: tuple[int, ...]) -> tuple[int, ...]:
        """The roots when expert j of a new layer is a copy of `sources[j]`."""
        first: dict[int, int] = {}
        return tuple(first.setdefault(self.roots[source], place) for place, source in enumerate(sources))
