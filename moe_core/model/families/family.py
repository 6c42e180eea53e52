"""What makes a family: a name, the names of its tensors, and the spelling of its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moe_core.model.families.schemas import DecoderConfig
from moe_core.spec import ModelSpec
from moe_core.spec.gate import SigmoidGroups


@dataclass(frozen=True, slots=True)
class NameMap:
    """Names of a layer's expert part below `model.layers.N`; attention and dense maps are called alike everywhere."""

    # What holds the router and the experts.
    block: str = "mlp"
    router: str = "gate"
    # The router's bias that counts for the choice only, below `block`.
    selection_bias: str = "gate.selection_bias"
    # An expert's maps: gate, up, down.
    expert: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str = "mlp.shared_expert"
    shared_gate: str = "mlp.shared_expert_gate"
    # Experts packed in one tensor, transposed, gate and up alternating.
    alternating: bool = False
    # All experts' gates in one tensor, all ups in another, all downs in a third.
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One way of naming and spelling the decoder."""

    # model_type in config.json.
    name: str
    # What transformers calls the class; None where transformers has no such model.
    architecture: str
    schema: type[DecoderConfig]
    # The keys of config.json that the family has besides those of all.
    keys: Callable[[ModelSpec], dict[str, Any]]
    names: NameMap = field(default_factory=NameMap)
    # Where transformers keeps what it packs in memory; None where only the experts' tensors have other names.
    packed_names: NameMap | None = None
    # Other values of model_type for the same thing.
    aliases: tuple[str, ...] = ()
    # Checkpoints may hold layers after the last one, which predict further tokens and are not read.
    predicts_further: bool = False
    # Beginnings of the names of tensors of other parts (that see), which are not read.
    other_parts: tuple[str, ...] = ()
    # It has experts, and what attention it has.
    has_experts: bool = True
    latent_attention: bool = False
    # transformers 5.23 has the family and reads what is written here.
    in_transformers: bool = True

    def complaint(self, spec: ModelSpec) -> str | None:
        """Why the family's keys cannot be written for a model at all; None when they can."""
        moe = spec.moe
        if self.has_experts != (moe is not None):
            return "has experts" if self.has_experts else "has no experts"
        if not self.latent_attention:
            return None
        if spec.attention.mla is None or moe is None or not isinstance(moe.gate, SigmoidGroups):
            return "has latent attention and a sigmoid gate with groups"
        # transformers loads such a model, and then cannot run it.
        if moe.gate.group_score == "two_best" and moe.num_experts // moe.gate.num_groups < 2:
            return "scores groups by their two best experts, and here they have one"
        return None
