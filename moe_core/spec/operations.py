"""Operations on experts: what is done to a model, every number bounded, told apart by `kind`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_core.sentences import CORE
from moe_core.spec.base import Code, Door, ExpertIndex, LayerIndex, Spec, Weight, refuse
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.model import Width
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.train import Norm, Rate, Seed, Steps
from moe_core.spec.twins import Hold

Noise = Annotated[float, Field(ge=0.0, le=1.0)]
# One expert number for all expert layers, or one for each, lowest layer first.
Chosen = ExpertIndex | Annotated[tuple[ExpertIndex, ...], Field(min_length=1, max_length=512)]


class UpcycleSpec(Spec):
    """Make a dense model a mixture of copies or slices of its feed-forwards."""

    kind: Literal["upcycle"] = "upcycle"
    layout: LayoutSpec
    # Into how many slices each copy is cut; num_experts and top_k count slices.
    granularity: Annotated[int, Field(ge=1, le=64)] = 1
    # Standard deviation of the noise on routed experts, relative to each matrix's own.
    noise: Noise = 0.0
    router_std: Noise = 0.02
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse((("granularity",), sentence) for sentence in self._complaints())
        return self

    def _complaints(self) -> Iterator[str]:
        for name, value in (("num_experts", self.layout.num_experts), ("top_k", self.layout.top_k)):
            if value % self.granularity:
                yield CORE.say("granularity_divides", name=name, value=value, granularity=self.granularity)
        sized = self.layout.moe_intermediate_size or self.layout.expert_kinds
        if self.granularity > 1 and (sized or self.layout.num_shared_experts):
            yield CORE.say("granularity_sets_widths")


class ComposeSpec(Spec):
    """Put several models of one shape together, with gates fitted on prompts of their domains."""

    kind: Literal["compose"] = "compose"
    # The domain of each model, in the models' order.
    domains: Annotated[tuple[Code, ...], Field(min_length=2, max_length=64)]
    # Layers that become expert layers when the models are dense; None means all.
    moe_layers: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=512)] | None = None
    # None: one for dense models, their own for mixtures.
    top_k: Annotated[int, Field(ge=1, le=64)] | None = None
    # Attention, embeddings and norms: of the first model, or the mean of all.
    trunk: Literal["first", "mean"] = "first"
    gate: Literal["ridge", "logistic", "mean"] = "ridge"
    # Strength of the ridge, relative to the mean eigenvalue of the inputs' second moment.
    ridge: Annotated[float, Field(gt=0.0, le=1e3)] = 1e-2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.domains)) != len(self.domains):
            raise ValueError(f"domains must be without repeats: {', '.join(self.domains)}")
        return self


class GrowSpec(Spec):
    """Double the experts, once or several times, keeping the function at the moment of growth."""

    kind: Literal["grow"] = "grow"
    num_experts: Annotated[int, Field(ge=2, le=1024)]
    # twin: each token sees one of two twins, top-k stays. double_k: both twins, top-k doubles. split: each expert
    # is cut in two, top-k doubles and the work stays.
    method: Literal["twin", "double_k", "split"] = "twin"


class ReleaseTwinsSpec(Spec):
    """Let the gate choose between twins, by degrees or at once."""

    kind: Literal["release_twins"] = "release_twins"
    # What is added to the logit of the twin that a hash picks: 0 leaves the choice to the gate, None to the hash.
    hold: Hold | None = 0.0


class EditSpec(Spec):
    """What operations on single experts share."""

    # For a gate with groups, which are of one size: the same is done in every group, and the number of an expert is its
    # place in its group.
    per_group: bool = False


class AddExpertSpec(EditSpec):
    """Add one expert to each layer as a twin of another; the function is kept at that moment."""

    kind: Literal["add"] = "add"
    source: ExpertIndex = 0


class RemoveExpertSpec(EditSpec):
    """Remove one expert of each layer; what is lost per domain is measured first."""

    kind: Literal["remove"] = "remove"
    # None: the one with the least load in each layer, or group.
    expert: Chosen | None = None
    # Refuse when a domain's loss would rise by more, in nats.
    max_loss_increase: Weight | None = None


class MergeExpertsSpec(EditSpec):
    """Merge two experts of each layer into the first, neurons aligned."""

    kind: Literal["merge"] = "merge"
    first: Chosen
    second: Chosen
    # By how much each of them is used, or half and half.
    weights: Literal["usage", "even"] = "usage"
    max_loss_increase: Weight | None = None


class SpecialiseCloneSpec(Spec):
    """Clone one expert of each layer and train the clone, and only it, on one domain."""

    kind: Literal["specialise_clone"] = "specialise_clone"
    source: ExpertIndex = 0
    domain: Code
    steps: Steps = 16
    learning_rate: Rate = 1e-3
    batch_prompts: Annotated[int, Field(ge=1, le=1024)] = 4
    # Weight of the loss that sends the domain's tokens to the clone and all others to its source.
    gate_weight: Weight = 1.0
    seed: Seed = 0


class QuantiseSpec(Spec):
    """Pack the routed experts in 8 or 4 bits, and where wanted attention's maps and the output map."""

    kind: Literal["quantise"] = "quantise"
    quantisation: ExpertQuantSpec = ExpertQuantSpec()
    # None: they stay in 16 bits. Beside experts in 4 bits, 8 for the head cost the least for what they save.
    attention: ExpertQuantSpec | None = None
    head: ExpertQuantSpec | None = None


class DequantiseSpec(Spec):
    """Give packed experts back as the floats that they stand for."""

    kind: Literal["dequantise"] = "dequantise"


class DistilSpec(Spec):
    """Make a small mixture out of a large one: merge experts that answer alike, then learn from the teacher."""

    kind: Literal["distil"] = "distil"
    num_experts: Annotated[int, Field(ge=1, le=1024)]
    top_k: Annotated[int, Field(ge=1, le=64)] | None = None
    # Keep so many neurons of each expert; None keeps all.
    moe_intermediate_size: Width | None = None
    # Keep so many layers, those that change the residual stream most; None keeps all.
    num_hidden_layers: Annotated[int, Field(ge=1, le=512)] | None = None
    steps: Steps = 24
    learning_rate: Rate = 1e-3
    # Of the gates; None: as the rest. Gates are clipped by their own norm, then everything by that of all.
    router_learning_rate: Rate | None = None
    clip_norm: Norm = 1.0
    router_clip_norm: Norm = 1.0
    batch_prompts: Annotated[int, Field(ge=1, le=1024)] = 4
    temperature: Annotated[float, Field(ge=0.1, le=100.0)] = 2.0
    logit_weight: Weight = 1.0
    router_weight: Weight = 0.1
    label_weight: Weight = 0.5
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k is not None and self.top_k > self.num_experts:
            sentence = CORE.say("top_k_over_experts", top_k=self.top_k, num_experts=self.num_experts)
            refuse([(("top_k",), sentence)])
        return self


OperationSpec = Annotated[
    UpcycleSpec
    | ComposeSpec
    | GrowSpec
    | ReleaseTwinsSpec
    | AddExpertSpec
    | RemoveExpertSpec
    | MergeExpertsSpec
    | SpecialiseCloneSpec
    | QuantiseSpec
    | DequantiseSpec
    | DistilSpec,
    Field(discriminator="kind"),
]
# One door for jobs and the API: plain data in, the right specification out.
OPERATION: Door[OperationSpec] = Door(OperationSpec)
