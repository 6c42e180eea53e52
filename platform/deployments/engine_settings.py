"""How much of a node one engine may use: the part of ServeSpec that people set, bounded, with what it needs in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from django.utils.translation import gettext as _
from pydantic import Field, model_validator

from common.errors import Invalid
from common.told import told, told_faults
from moe_core.errors import SpecError, placed
from moe_core.sentences import CORE
from moe_core.spec import ModelSpec, RoutingSpec
from moe_core.spec.base import Spec
from moe_core.spec.cost import cost_of
from moe_core.spec.quantisation import WeightsName
from moe_core.spec.routing import FloorShare, PriorMode, PriorStrength
from moe_core.spec.serve import BLOCK_TOKENS
from moe_core.spec.served import check_residency, guessing_misfit, misfit_of, packing_for, served_as

# What only a router with experts can heed.
OF_EXPERTS = ("prior_mode", "prior_strength", "prior_floor", "expert_affinity_steps")
DTYPE_PRECISION = {"bfloat16": "bf16", "float32": "fp32"}
# An engine without a model: Python, torch, buffers of one step. Measured; a test holds the estimate to its band.
ENGINE_BYTES = 420 * 10**6


class EngineSettings(Spec):
    """What a deployment's engines are told beside the model."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # Experts, attention and head of a version in 16 bits are packed in 8 or 4 when an engine loads it.
    weights: WeightsName = "stored"
    num_threads: Annotated[int, Field(ge=1, le=64)] = 2
    max_sequences: Annotated[int, Field(ge=1, le=256)] = 16
    max_batch_tokens: Annotated[int, Field(ge=1, le=65_536)] = 512
    kv_tokens: Annotated[int, Field(ge=256, le=1 << 22)] = 16_384
    max_waiting: Annotated[int, Field(ge=0, le=4096)] = 64
    # Fewer experts in memory than the model has: the others are read from disk when they are used.
    resident_experts: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    # Where a GPU computes, fewer experts in its memory: the others are copied there from the node's.
    device_experts: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    # How many steps a waiting request may be overtaken for, by ones that share experts with those that run; 0: never.
    expert_affinity_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    # At most so many tokens of an answer are guessed from what it repeats, and checked in one step; 0: none; None: as
    # many as pay, where that changes no bit of an answer.
    ngram_tokens: Annotated[int, Field(ge=0, le=16)] | None = None
    # The same answers to the last bit whatever shares the batch; slower.
    batch_invariant: bool = False
    # What a request's domain does, in place of the domain map's policy; a mode is for every layer. None: as the map says.
    prior_mode: PriorMode | None = None
    prior_strength: PriorStrength | None = None
    prior_floor: FloorShare | None = None

    @model_validator(mode="after")
    def _check(self) -> EngineSettings:
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) must give each of max_sequences ({self.max_sequences}) a token"
            )
        if self.batch_invariant and self.max_batch_tokens - self.max_sequences < BLOCK_TOKENS:
            raise ValueError(
                f"batch_invariant needs max_batch_tokens ({self.max_batch_tokens}) of {BLOCK_TOKENS} more than "
                f"max_sequences ({self.max_sequences}) at least"
            )
        return self


def settings_checked(data: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Return the settings for a model of `spec` as they are stored, or raise Invalid with the reason."""
    try:
        chosen, model = EngineSettings.parse(data), ModelSpec.parse(spec)
        for check in (_check_experts, _check_residency, _check_weights, _check_guesses, _check_prior):
            check(chosen, model)
        return chosen.model_dump(exclude_none=True, mode="json")
    except SpecError as error:
        raise Invalid(
            _("The engine settings are not valid: %(reason)s") % {"reason": told(str(error))},
            fields=told_faults(error, "settings"),
        ) from error


def settings_changed(present: dict[str, Any], change: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Return settings of which some are different for a model of `spec`; those that `change` leaves out stay.

    None takes back a setting that need not be set. Raises Invalid as `settings_checked` does.
    """
    return settings_checked({**present, **change} if isinstance(change, dict) else change, spec)


def _check_experts(chosen: EngineSettings, model: ModelSpec) -> None:
    # Those of a mixture without a domain map wait for one.
    if model.moe is not None:
        return
    own = {name: EngineSettings.model_fields[name].default for name in OF_EXPERTS}
    faults = [
        ((name,), CORE.say("setting_without_experts", setting=name, off="null" if off is None else off))
        for name, off in own.items()
        if getattr(chosen, name) != off
    ]
    if faults:
        refusal = SpecError("; ".join(sentence for _place, sentence in faults))
        refusal.faults = tuple(faults)
        raise refusal


def _check_residency(chosen: EngineSettings, model: ModelSpec) -> None:
    check_residency(model, chosen.resident_experts, chosen.device_experts)


def _check_weights(chosen: EngineSettings, model: ModelSpec) -> None:
    misfit = misfit_of(chosen.weights, chosen.dtype, chosen.resident_experts, chosen.device_experts)
    if misfit is not None:
        raise placed("weights", misfit)
    packing_for(model, chosen.weights)


def _check_guesses(chosen: EngineSettings, model: ModelSpec) -> None:
    misfit = guessing_misfit(chosen.ngram_tokens, chosen.batch_invariant)
    if misfit is not None:
        raise placed("ngram_tokens", misfit)


def _check_prior(chosen: EngineSettings, model: ModelSpec) -> None:
    if model.moe is None or chosen.prior_mode is None:
        return
    try:
        RoutingSpec(prior_mode=chosen.prior_mode).check_gate(model.moe.gate.kind, model.moe.moe_layers)
    except SpecError as error:
        raise placed("prior_mode", str(error)) from error


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica needs in its node's memory, by part, and beside that in a GPU's."""

    weights: int
    cache: int
    engine: int = ENGINE_BYTES
    # What a start that packs holds beside: the weights as they are stored, of which the cache takes the room afterwards.
    packing: int = 0
    # Where it computes on a GPU, what that one's memory holds of weights and cache; no part of what is reserved.
    device: int = 0

    @property
    def held(self) -> int:
        """What it holds when it serves."""
        return self.weights + self.cache + self.engine

    @property
    def total(self) -> int:
        """What is reserved for its start."""
        return self.held + self.packing

    def as_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return {**asdict(self), "total": self.total}


def need_of(spec: dict[str, Any], settings: dict[str, Any]) -> Need:
    """Estimate the memory of one replica from the model's specification and the engine's settings."""
    model, chosen = ModelSpec.parse(spec), EngineSettings.parse(settings)
    computed = _served(model, chosen)
    stored, served = cost_of(model), cost_of(computed)
    # The cost counts 16-bit keys and values; an engine in float32 keeps them in 32.
    widening = 2 if chosen.dtype == "float32" else 1
    precision = DTYPE_PRECISION[chosen.dtype]
    cache = chosen.kv_tokens * stored.kv_bytes_per_token * widening
    whole = served.bytes[precision]
    here, there = (
        whole - _bytes_elsewhere(model, chosen, held, stored.params.experts)
        for held in (chosen.resident_experts, chosen.device_experts)
    )
    on_processor = chosen.resident_experts is not None and chosen.device_experts is None
    return Need(
        weights=here,
        cache=cache,
        packing=0 if computed is model else max(0, stored.bytes[precision] - cache),
        device=0 if on_processor else there + cache,
    )


def _served(model: ModelSpec, chosen: EngineSettings) -> ModelSpec:
    """What is computed; the model itself where it cannot be packed, which its engine says when it starts."""
    try:
        return served_as(model, chosen.weights)
    except SpecError:
        return model


def _bytes_elsewhere(model: ModelSpec, chosen: EngineSettings, held: int | None, expert_params: int) -> int:
    """What the experts would take that a memory of `held` leaves out; experts in few bits are counted as if all were in."""
    if model.moe is None or held is None or model.moe.quantisation is not None:
        return 0
    number = len(model.moe.moe_layers) * model.moe.num_experts
    absent = max(0, number - held)
    return expert_params // number * absent * (4 if chosen.dtype == "float32" else 2)
