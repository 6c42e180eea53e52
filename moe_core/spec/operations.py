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
    """The name of this operation."""
    layout: LayoutSpec
    """The experts to lay over the dense model."""
    granularity: Annotated[int, Field(ge=1, le=64)] = 1
    """Into how many slices each copy is cut; num_experts and top_k count slices."""
    noise: Noise = 0.0
    """Standard deviation of the noise on routed experts, relative to each matrix's own."""
    router_std: Noise = 0.02
    """Standard deviation of the new gates' weights."""
    seed: Seed = 0
    """Where its random numbers start."""

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
    """The name of this operation."""
    domains: Annotated[tuple[Code, ...], Field(min_length=2, max_length=64)]
    """The domain of each model, in the models' order."""
    moe_layers: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=512)] | None = None
    """Layers that become expert layers when the models are dense; None means all."""
    top_k: Annotated[int, Field(ge=1, le=64)] | None = None
    """None: one for dense models, their own for mixtures."""
    trunk: Literal["first", "mean"] = "first"
    """Attention, embeddings and norms: of the first model, or the mean of all."""
    gate: Literal["ridge", "logistic", "mean"] = "ridge"
    """How gates are fitted: by ridge or logistic regression, or as the mean input of each domain."""
    ridge: Annotated[float, Field(gt=0.0, le=1e3)] = 1e-2
    """Strength of the ridge, relative to the mean eigenvalue of the inputs' second moment. With `mean` it counts only where
    what all logits have in common changes weights (gate `base`, sigmoid scores)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if repeated := sorted({code for code in self.domains if self.domains.count(code) > 1}):
            refuse([(("domains",), CORE.say("domains_repeated", codes=", ".join(repeated)))])
        return self


class GrowSpec(Spec):
    """Double the experts, once or several times, keeping the function at the moment of growth."""

    kind: Literal["grow"] = "grow"
    """The name of this operation."""
    num_experts: Annotated[int, Field(ge=2, le=1024)]
    """How many experts there are afterwards: as many as before, times a power of two."""
    method: Literal["twin", "double_k", "split"] = "twin"
    """twin: each token sees one of two twins, top-k stays. double_k: both twins, top-k doubles. split: each expert is
    cut in two, top-k doubles and the work stays."""


class ReleaseTwinsSpec(Spec):
    """Let the gate choose between twins, by degrees or at once."""

    kind: Literal["release_twins"] = "release_twins"
    """The name of this operation."""
    hold: Hold | None = 0.0
    """What is added to the logit of the twin that a hash picks: 0 leaves the choice to the gate, null to the hash."""


class EditSpec(Spec):
    """What operations on single experts share."""

    per_group: bool = False
    """For a gate with groups, which are of one size: the same is done in every group, and the number of an expert is
    its place in its group."""


class FewerSpec(EditSpec):
    """What operations after which there are fewer experts share."""

    together: Annotated[int, Field(ge=1, le=64)] = 1
    """How many experts go at once with the one that is named: 2 takes both halves of an expert that was split, which
    share a gate row. As many as share one must."""
    max_loss_increase: Weight | None = None
    """Refuse when a domain's loss would rise by more, in nats; null for never."""


class AddExpertSpec(EditSpec):
    """Add one expert to each layer as a twin of another; the function is kept at that moment."""

    kind: Literal["add"] = "add"
    """The name of this operation."""
    source: ExpertIndex = 0
    """Number of the expert whose twin is added."""


class RemoveExpertSpec(FewerSpec):
    """Remove one expert of each layer; what is lost per domain is measured first."""

    kind: Literal["remove"] = "remove"
    """The name of this operation."""
    expert: Chosen | None = None
    """None: the one with the least load in each layer, or group."""


class MergeExpertsSpec(FewerSpec):
    """Merge two experts of each layer into the first, neurons aligned."""

    kind: Literal["merge"] = "merge"
    """The name of this operation."""
    first: Chosen
    """The expert that stays, and becomes both."""
    second: Chosen
    """The expert that goes."""
    weights: Literal["usage", "even"] = "usage"
    """By how much each of them is used, or half and half."""


class SpecialiseCloneSpec(Spec):
    """Clone one expert of each layer and train the clone, and only it, on one domain."""

    kind: Literal["specialise_clone"] = "specialise_clone"
    """The name of this operation."""
    source: ExpertIndex = 0
    """Number of the expert that is cloned."""
    domain: Code
    """The domain that the clone learns."""
    steps: Steps = 16
    """How many steps it learns."""
    learning_rate: Rate = 1e-3
    """Of what learns."""
    batch_prompts: Annotated[int, Field(ge=1, le=1024)] = 4
    """Prompts in each step."""
    gate_weight: Weight = 1.0
    """Weight of the loss that sends the domain's tokens to the clone and all others to its source."""
    seed: Seed = 0
    """Where its random numbers start."""


class WakeExpertSpec(Spec):
    """Train one under-used expert of each layer, and only it, on the tokens that were nearest to choosing it."""

    kind: Literal["wake_expert"] = "wake_expert"
    """The name of this operation."""
    expert: Chosen | None = None
    """None: the one with the least load in each layer."""
    share: Annotated[float, Field(gt=0.0, le=16.0)] = 1.0
    """How many tokens of a batch are drawn to it, over its fair share."""
    steps: Steps = 16
    """How many steps it learns."""
    learning_rate: Rate = 1e-3
    """Of what learns."""
    batch_prompts: Annotated[int, Field(ge=1, le=1024)] = 4
    """Prompts in each step."""
    gate_weight: Weight = 1.0
    """Weight of the loss that draws the nearest tokens and holds the others off."""
    seed: Seed = 0
    """Where its random numbers start."""


class QuantiseSpec(Spec):
    """Pack the routed experts in 8 or 4 bits, and where wanted attention's maps and the output map."""

    kind: Literal["quantise"] = "quantise"
    """The name of this operation."""
    quantisation: ExpertQuantSpec = ExpertQuantSpec()
    """Bits, size of the groups and symmetry."""
    attention: ExpertQuantSpec | None = None
    """The same of attention's maps; null leaves them in 16 bits."""
    head: ExpertQuantSpec | None = None
    """The same of the output map. Beside experts in 4 bits, 8 for the head cost the least for what they save."""
    level: bool = False
    """Level and sort the experts' neurons first, which keeps the function: every packing then loses less."""
    rotate: bool = False
    """Turn the residual stream and level the experts' neurons first, which keeps the function: 8 bits in groups of 256 or
    more then lose no more than in groups of 64. 4 bits in groups of 32 lose more by it."""


class DequantiseSpec(Spec):
    """Give packed experts back as the floats that they stand for."""

    kind: Literal["dequantise"] = "dequantise"
    """The name of this operation."""


class DistilSpec(Spec):
    """Make a small mixture out of a large one: merge experts that answer alike, then learn from the teacher."""

    kind: Literal["distil"] = "distil"
    """The name of this operation."""
    num_experts: Annotated[int, Field(ge=1, le=1024)]
    """Experts of the small mixture."""
    top_k: Annotated[int, Field(ge=1, le=64)] | None = None
    """How many of them a token sees; null keeps the teacher's."""
    moe_intermediate_size: Width | None = None
    """Keep so many neurons of each expert; null keeps all."""
    num_hidden_layers: Annotated[int, Field(ge=1, le=512)] | None = None
    """Keep so many layers, those that change the residual stream most; null keeps all."""
    steps: Steps = 24
    """How many steps it learns."""
    learning_rate: Rate = 1e-3
    """Of what learns."""
    router_learning_rate: Rate | None = None
    """Of the gates; None: as the rest. Gates are clipped by their own norm, then everything by that of all.
    """
    clip_norm: Norm = 1.0
    """The norm that all gradients are clipped to together."""
    router_clip_norm: Norm = 1.0
    """The norm that the gates' gradients are clipped to by themselves."""
    batch_prompts: Annotated[int, Field(ge=1, le=1024)] = 4
    """Prompts in each step."""
    temperature: Annotated[float, Field(ge=0.1, le=100.0)] = 2.0
    """Divides both models' logits where they are compared."""
    logit_weight: Weight = 1.0
    """Weight of the difference to the teacher's answers."""
    router_weight: Weight = 0.1
    """Weight of the difference to the teacher's routing."""
    label_weight: Weight = 0.5
    """Weight of the loss on the text itself."""
    seed: Seed = 0
    """Where its random numbers start."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k is not None and self.top_k > self.num_experts:
            sentence = CORE.say("top_k_over_experts", top_k=self.top_k, num_experts=self.num_experts)
            refuse([(("top_k",), sentence)])
        return self


class MeasureSpec(Spec):
    """Measure a model as it is, alone or beside another that reads the same tokens; nothing is changed."""

    kind: Literal["measure"] = "measure"
    """The name of this operation."""


OperationSpec = Annotated[
    UpcycleSpec
    | ComposeSpec
    | GrowSpec
    | ReleaseTwinsSpec
    | AddExpertSpec
    | RemoveExpertSpec
    | MergeExpertsSpec
    | SpecialiseCloneSpec
    | WakeExpertSpec
    | QuantiseSpec
    | DequantiseSpec
    | DistilSpec
    | MeasureSpec,
    Field(discriminator="kind"),
]
# One door for jobs and the API: plain data in, the right specification out.
OPERATION: Door[OperationSpec] = Door(OperationSpec)
