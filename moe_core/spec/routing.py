"""Business domains, the experts that they are mapped to, and how the router should heed them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec.base import Code, ExpertIndex, Fault, LayerIndex, Spec, Weight, refuse
from moe_core.spec.twins import TwinsSpec

# JSON's objects have strings for keys; one spelling for each number of a LayerIndex, so that no two rules fall together.
LAYER_KEY = r"^(0|[1-9][0-9]?|[1-4][0-9]{2}|50[0-9]|51[01])$"


def _layer_number(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    if not re.fullmatch(LAYER_KEY, key):
        raise ValueError(CORE.say("layer_key", key=repr(key)))
    return int(key)


LayerKey = Annotated[LayerIndex, BeforeValidator(_layer_number)]
ExpertSet = Annotated[tuple[ExpertIndex, ...], Field(max_length=1024)]
PriorMode = Literal["none", "bias", "mask", "floor"]
PriorStrength = Annotated[float, Field(ge=0.0, le=50.0)]
FloorShare = Annotated[float, Field(ge=0.0, lt=1.0)]


class DomainSpec(Spec):
    """One business domain with its names and its experts."""

    code: Code
    """The short name that requests and rows of logs carry."""
    name_en: Annotated[str, Field(min_length=1, max_length=200)]
    """Its English name."""
    name_zh: Annotated[str, Field(min_length=1, max_length=200)]
    """Its Chinese name."""
    experts: Annotated[ExpertSet, Field(min_length=1)]
    """Numbers of the experts that answer for it, the same in every expert layer."""


class LayerPrior(Spec):
    """What a request's domain does in one layer.

    "bias" adds `strength` to the logits of the domain's experts, "mask" leaves only them and the general ones, "floor"
    gives them together at least the share `floor` of the probability, "none" lets the router decide alone.
    """

    mode: PriorMode = "bias"
    """What is done with the logits of the experts."""
    strength: PriorStrength = 1.0
    """Of "bias": what is added to the logits of the domain's experts."""
    floor: FloorShare = 0.5
    """Of "floor": the share of the gate's probability that they have at least, together. It is one of shares, not of
    choices: a gate's balancing bias and its limit on groups still have their say in which experts are chosen, and a strong
    bias can choose none of them. Where they must be chosen, use "mask"."""


PriorLayers = Annotated[
    dict[LayerKey, LayerPrior],
    Field(max_length=512, json_schema_extra={"propertyNames": {"pattern": LAYER_KEY}}),
]


class RoutingSpec(Spec):
    """The map from domains to experts, and the weights of the losses that teach it to the router."""

    domains: Annotated[tuple[DomainSpec, ...], Field(max_length=256)] = ()
    """The domains; a request names one of them, or none."""
    general_experts: ExpertSet = ()
    """Experts of no domain, which a mask leaves to every request."""
    label_weight: Weight = 0.5
    """Weight of the loss that sends a domain's tokens to its experts, while routers are tuned."""
    balance_weight: Weight = 1.0
    """Weight of the loss that evens the loads."""
    z_weight: Weight = 0.0
    """Weight of the loss that keeps logits small."""
    prior_mode: PriorMode = "bias"
    """What a request's domain does in every layer that `prior_layers` does not name."""
    prior_strength: PriorStrength = 1.0
    """Of "bias", as in LayerPrior."""
    prior_floor: FloorShare = 0.5
    """Of "floor", as in LayerPrior."""
    prior_layers: PriorLayers = {}
    """Layers that do otherwise, by their number in the model."""

    @model_validator(mode="before")
    @classmethod
    def _without_temperature(cls, data: Any) -> Any:
        # Policies that were stored before it moved to the layout say 1.0 here, and it had no effect.
        if isinstance(data, dict) and data.get("temperature") == 1.0:
            return {key: value for key, value in data.items() if key != "temperature"}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[Fault]:
        codes = [domain.code for domain in self.domains]
        repeated = sorted({code for code in codes if codes.count(code) > 1})
        if repeated:
            yield ("domains",), CORE.say("domains_repeated", codes=", ".join(repeated))
        for number, domain in enumerate(self.domains):
            if len(set(domain.experts)) != len(domain.experts):
                sentence = CORE.say("expert_repeated", owner=domain.code, experts=list(domain.experts))
                yield ("domains", number, "experts"), sentence
        if len(set(self.general_experts)) != len(self.general_experts):
            experts = list(self.general_experts)
            yield ("general_experts",), CORE.say("expert_repeated", owner="general", experts=experts)

    @property
    def codes(self) -> tuple[str, ...]:
        """The domain codes, in the order of every per-domain table."""
        return tuple(domain.code for domain in self.domains)

    def prior_in(self, layer: int) -> LayerPrior:
        """What a domain does in one layer of the model."""
        everywhere = LayerPrior(mode=self.prior_mode, strength=self.prior_strength, floor=self.prior_floor)
        return self.prior_layers.get(layer, everywhere)

    @property
    def has_prior(self) -> bool:
        """Whether a domain does anything in any layer."""
        return self.prior_mode != "none" or any(prior.mode != "none" for prior in self.prior_layers.values())

    def index_of(self, code: str | None) -> int:
        """The row of a domain in every per-domain table; -1 for None and for an unknown code."""
        return self.codes.index(code) if code in self.codes else -1

    def check_fits(self, num_experts: int, moe_layers: Sequence[int] | None = None) -> None:
        """Raise SpecError when an expert index is outside the layout, or a layer of `prior_layers` has no experts.

        `moe_layers` are the numbers of the expert layers; None leaves layers unchecked.
        """
        missing = [] if moe_layers is None else sorted(self.prior_layers.keys() - set(moe_layers))
        if missing:
            raise SpecError(
                f"prior_layers names {_listed(missing)}, but experts are in {_listed(moe_layers or ())}; name layers that "
                "have experts"
            )
        for domain in self.domains:
            if max(domain.experts) >= num_experts:
                raise SpecError.of(
                    "expert_outside",
                    domain=repr(domain.code),
                    expert=max(domain.experts),
                    num_experts=num_experts,
                    last=num_experts - 1,
                )
        if self.general_experts and max(self.general_experts) >= num_experts:
            raise SpecError.of(
                "general_expert_outside", expert=max(self.general_experts), num_experts=num_experts
            )

    def check_gate(self, gate: str, moe_layers: Sequence[int]) -> None:
        """Raise SpecError for a floor under a gate, by its kind, that chooses by no share."""
        if gate == "hash" and any(self.prior_in(layer).mode == "floor" for layer in moe_layers):
            raise SpecError.of("floor_without_shares", gate=gate)

    def check_mask(
        self, num_experts: int, top_k: int, moe_layers: Sequence[int], twins: TwinsSpec | None = None
    ) -> None:
        """Raise SpecError where a mask leaves the tokens of a domain fewer than top_k experts in a layer.

        Of `twins` a token sees one, and a mapped expert stands for those that the map does not name.
        """
        if not any(self.prior_in(layer).mode == "mask" for layer in moe_layers):
            return
        whole = self.with_twins(twins)
        roots = range(num_experts) if twins is None else twins.roots
        for domain in whole.domains:
            left = {*domain.experts, *whole.general_experts}
            seen = len({roots[expert] for expert in left})
            values = {"domain": domain.code, "left": len(left), "top_k": top_k}
            if len(left) < top_k:
                raise SpecError.of("mask_leaves_few", **values)
            if seen < top_k:
                raise SpecError.of("mask_leaves_twins", **values, seen=seen)

    def with_twins(self, twins: TwinsSpec | None) -> RoutingSpec:
        """The same map, in which every expert stands for its twins too, but for those that the map names itself.

        So a map from before a growth holds for the copies, and one that tells twins apart is taken at its word.
        """
        if twins is None:
            return self
        named = {*self.general_experts, *(expert for domain in self.domains for expert in domain.experts)}
        unnamed = [(expert, root) for expert, root in enumerate(twins.roots) if expert not in named]

        def whole(experts: tuple[int, ...]) -> tuple[int, ...]:
            roots = {twins.roots[expert] for expert in experts}
            return (*experts, *(expert for expert, root in unnamed if root in roots))

        domains = tuple(
            domain.model_copy(update={"experts": whole(domain.experts)}) for domain in self.domains
        )
        return self.model_copy(update={"domains": domains, "general_experts": whole(self.general_experts)})

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


def _listed(layers: Sequence[int]) -> str:
    """The first layers of a list as people read them."""
    shown = ", ".join(map(str, layers[:8]))
    word = "layer" if len(layers) == 1 else "layers"
    return f"{word} {shown}" + (f" … {layers[-1]}" if len(layers) > 8 else "")


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
            raise SpecError.of("no_derangement", domain=domain)
    order = [0] * len(sets)
    for source, domain in taken_by.items():
        order[domain] = source
    return order
