"""What an engine serves, and what it computes of a version that it packs as it loads it, told from the specification. No
tensors.

What operations are is read when a version is packed: most engines start without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec.model import ModelSpec
from moe_core.spec.quantisation import PACKINGS, WeightsName

if TYPE_CHECKING:
    from moe_core.spec.operations import QuantiseSpec


def packing_for(stored: ModelSpec, weights: WeightsName) -> QuantiseSpec | None:
    """How a version that is stored so is packed when it is loaded, whatever can be; None where it stays as it lies.

    The maps of latent attention and of gated heads cannot be, and stay in 16 bits.

    Raises SpecError, with `weights` in its faults, for a version that cannot be packed.
    """
    if weights == "stored":
        return None
    from moe_core.errors import placed
    from moe_core.spec.foresee import attention_packs
    from moe_core.spec.operations import QuantiseSpec

    moe = stored.moe
    if moe is None:
        raise placed("weights", CORE.say("weights_without_experts", weights=weights))
    if moe.quantisation is not None:
        raise placed("weights", CORE.say("weights_packed", weights=weights, bits=moe.quantisation.bits))
    if moe.expert_kinds is not None:
        raise placed("weights", CORE.say("weights_of_kinds", weights=weights))
    packing = PACKINGS[weights]
    attention = packing.attention if attention_packs(stored) else None
    return QuantiseSpec(quantisation=packing.experts, attention=attention, head=packing.head)


def served_as(stored: ModelSpec, weights: WeightsName) -> ModelSpec:
    """The model that is computed of one that is stored so; its family is "turnout_moe" where it is packed.

    Raises SpecError as `packing_for` does.
    """
    packing = packing_for(stored, weights)
    if packing is None:
        return stored
    from moe_core.spec.foresee import foreseen

    return foreseen(stored, packing)


def misfit_of(
    weights: WeightsName, dtype: str, resident_experts: int | None, device_experts: int | None = None
) -> str | None:
    """Why weights cannot be packed beside these settings of an engine; None where they can."""
    whole = resident_experts is None and device_experts is None
    if weights == "stored" or (dtype == "bfloat16" and whole):
        return None
    return CORE.say("weights_in_bfloat16", weights=weights)


def guessing_misfit(ngram_tokens: int | None, batch_invariant: bool) -> str | None:
    """Why tokens cannot be guessed beside these settings of an engine; None where they can, or none are."""
    if not (ngram_tokens and batch_invariant):
        return None
    return CORE.say("guesses_in_company", tokens=ngram_tokens)


def check_gate(stored: ModelSpec) -> None:
    """Raise SpecError for a model whose gate cannot answer token by token."""
    moe = stored.moe
    if moe is not None and moe.gate.not_served is not None:
        raise SpecError.of("gate_not_served", gate=moe.gate.kind, why=moe.gate.not_served)


def check_residency(
    stored: ModelSpec, resident_experts: int | None, device_experts: int | None = None
) -> None:
    """Raise SpecError, placed at the setting, where so many experts in memory, the others on disk, or so many on a device,
    the others in memory, cannot serve a model; None: all are there."""
    moe = stored.moe
    for setting, resident in (("resident_experts", resident_experts), ("device_experts", device_experts)):
        if resident is None:
            continue
        if moe is None:
            raise _refused(setting, "residency_without_experts")
        if moe.expert_kinds is not None:
            raise _refused(setting, "residency_of_kinds")
        if resident < moe.num_experts:
            numbers = {"resident": resident, "num_experts": moe.num_experts}
            raise _refused(setting, "residency_too_small", **numbers)


def _refused(setting: str, reason: str, **values: object) -> SpecError:
    from moe_core.errors import placed

    return placed(setting, CORE.say(reason, setting=setting, **values))
