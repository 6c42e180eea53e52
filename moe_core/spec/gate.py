"""Gates: how the tokens of an expert layer find their experts, one small specification for each way.

What all gates share is said once, in MoeSpec: `top_k` is the number of places of a token (for gates that choose a varying
number of experts it is the most they may choose), `norm_topk_prob` says whether the weights of the chosen are made to sum
to one (gates that weigh by themselves pass it over), `temperature` divides the logits. E experts, K top_k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from moe_core.sentences import CORE
from moe_core.spec.base import Fault, Spec, refuse
from moe_core.spec.capacity import CapacitySpec

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Factor = Annotated[float, Field(gt=0.0, le=1e3)]


class Gate(Spec):
    """What every gate can say about itself."""

    # The choice of a token hangs on the other tokens of its batch: not for serving one token after the other.
    sees_the_batch: ClassVar[bool] = False
    # Why a tuning job refuses the gate, and why it cannot answer token after token; None where neither is so.
    not_tuned: ClassVar[str | None] = None
    not_served: ClassVar[str | None] = None
    # What a tuning job teaches of it, where that is not one map a layer.
    tuned_so: ClassVar[str] = ""
    # A token may have fewer experts than places.
    leaves_places_empty: ClassVar[bool] = False
    # Its weights are made in a way of their own, so that `norm_topk_prob` does nothing.
    weighs_by_itself: ClassVar[bool] = False

    def complaint(self, num_experts: int, top_k: int) -> str | None:
        """Why the gate cannot send a token to `top_k` of `num_experts`; None when it can."""
        return None

    def num_places(self, num_experts: int, top_k: int) -> int:
        """The most experts that one token may have."""
        return top_k

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """Whether the weights of every token sum to one."""
        return norm_topk_prob


class LinearGate(Gate):
    """A gate whose logits are one map of the hidden state."""

    logit_bias: bool = False
    """A bias on the logits (gpt-oss); it counts for choice and weight."""
    selection_bias: bool = False
    """A bias for each expert that counts for the choice only: the lever of loss-free balancing, stored with the model.
    """


class SoftmaxTopk(LinearGate):
    """The k best of a softmax (Mixtral, Qwen3-MoE, OLMoE), or a softmax of the k best (gpt-oss).

    "after" gives the values of "before" with `norm_topk_prob`; it is there to say what a family does.
    """

    kind: Literal["softmax_topk"] = "softmax_topk"
    """The name of this gate."""
    order: Literal["before", "after"] = "before"
    """Where the softmax stands: before the choice, over all experts, or after it, over the chosen."""

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """A softmax of the chosen does."""
        return norm_topk_prob or self.order == "after"


class SigmoidGroups(LinearGate):
    """Scores of each expert by itself, the k best of the best groups (DeepSeek-V3; one group: any sigmoid gate)."""

    kind: Literal["sigmoid_groups"] = "sigmoid_groups"
    """The name of this gate."""
    selection_bias: bool = True
    """A bias for each expert that counts for the choice only, as in LinearGate; V3 has one, V2 none."""
    num_groups: Annotated[int, Field(ge=1, le=1024)] = 1
    """Into how many groups of equal size the experts are cut; 1 for none."""
    topk_group: Annotated[int, Field(ge=1, le=1024)] = 1
    """From how many of the groups, the best ones, a token takes its experts."""
    routed_scaling_factor: Factor = 1.0
    """What the weights of the chosen are multiplied by at last."""
    scores: Literal["sigmoid", "softmax", "sqrtsoftplus"] = "sigmoid"
    """What makes scores of logits."""
    group_score: Literal["two_best", "best"] = "two_best"
    """What a group is worth: its two best experts (V3) or its best one (V2)."""

    def complaint(self, num_experts: int, top_k: int) -> str | None:
        """Groups are of equal size, and the chosen ones hold k experts."""
        size = num_experts // self.num_groups
        if num_experts % self.num_groups:
            return CORE.say("groups_uneven", num_experts=num_experts, num_groups=self.num_groups)
        if self.topk_group > self.num_groups:
            return CORE.say("topk_group_over", topk_group=self.topk_group, num_groups=self.num_groups)
        if top_k > self.topk_group * size:
            experts = self.topk_group * size
            return CORE.say("top_k_over_groups", top_k=top_k, experts=experts, groups=self.topk_group)
        return None

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """Not when the weights are scaled."""
        return norm_topk_prob and self.routed_scaling_factor == 1.0


class Sparsemax(LinearGate):
    """The projection of the logits on the simplex: as many experts as have a share, at most top_k."""

    leaves_places_empty: ClassVar[bool] = True
    kind: Literal["sparsemax"] = "sparsemax"
    """The name of this gate."""


class TopP(LinearGate):
    """The fewest experts whose probabilities reach `p` together, at least one, at most top_k."""

    leaves_places_empty: ClassVar[bool] = True
    kind: Literal["top_p"] = "top_p"
    """The name of this gate."""
    p: Share = 0.7
    """The probability that the chosen experts reach together."""


class Switch(LinearGate):
    """The best expert, weighed by its probability (Switch Transformers); jitter multiplies inputs while training."""

    weighs_by_itself: ClassVar[bool] = True
    kind: Literal["switch"] = "switch"
    """The name of this gate."""
    jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Inputs are multiplied by a random number from 1 - jitter to 1 + jitter while training."""

    def complaint(self, num_experts: int, top_k: int) -> str | None:
        """One expert a token."""
        return None if top_k == 1 else CORE.say("one_expert_a_token", gate=self.kind, top_k=top_k)

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """The weight is the probability: a weight of one would give the gate no gradient."""
        return False


class GshardTop2(LinearGate):
    """The best expert and a second one, which is kept with probability min(1, 2 · its weight) while training."""

    kind: Literal["gshard_top2"] = "gshard_top2"
    """The name of this gate."""
    random_second: bool = True
    """Keep the second expert by chance while training; otherwise always."""

    def complaint(self, num_experts: int, top_k: int) -> str | None:
        """Two experts a token."""
        return None if top_k == 2 else CORE.say("two_experts_a_token", gate=self.kind, top_k=top_k)


class NoisyTopk(LinearGate):
    """Logits with learnt noise while training (Shazeer 2017); without noise when serving."""

    kind: Literal["noisy_topk"] = "noisy_topk"
    """The name of this gate."""
    noise_floor: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-2
    """The least standard deviation of the noise."""


class Sinkhorn(LinearGate):
    """While training the choice is made on scores that Sinkhorn's iterations have evened out; weights stay the gate's."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    """The name of this gate."""
    num_iterations: Annotated[int, Field(ge=1, le=1000)] = 20
    """How often rows and columns are scaled in turn."""


class Quantile(LinearGate):
    """While training each expert's threshold is moved to the quantile of the batch that gives it its fair share."""

    kind: Literal["quantile"] = "quantile"
    """The name of this gate."""
    selection_bias: bool = True
    """The thresholds found, stored and served; this gate has them always, and false is refused."""
    num_iterations: Annotated[int, Field(ge=1, le=1000)] = 10
    """How often the thresholds are moved for one batch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.selection_bias:
            refuse([(("selection_bias",), CORE.say("thresholds_are_kept", gate=self.kind))])
        return self


class ExpertChoice(LinearGate):
    """Every expert picks its tokens: ⌈capacity_factor · T · K / E⌉ of them."""

    sees_the_batch: ClassVar[bool] = True
    not_tuned: ClassVar[str | None] = CORE.say("tokens_of_the_batch")
    not_served: ClassVar[str | None] = CORE.say("hangs_on_later_tokens")
    leaves_places_empty: ClassVar[bool] = True
    weighs_by_itself: ClassVar[bool] = True
    kind: Literal["expert_choice"] = "expert_choice"
    """The name of this gate."""
    selection_bias: bool = False
    """Without effect: an expert compares tokens, and its bias is the same for all of them."""
    capacity_factor: Factor = 1.0
    """How many times its fair share of tokens an expert picks."""

    def num_places(self, num_experts: int, top_k: int) -> int:
        """All experts may pick the same token."""
        return num_experts

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """A token that nobody picks has no weight at all."""
        return False


class Base(LinearGate):
    """Equal loads by assignment while training, the best expert when serving; one expert a token (BASE layers).

    "semantic" starts the centroids from clusters of token embeddings.
    """

    weighs_by_itself: ClassVar[bool] = True
    kind: Literal["base"] = "base"
    """The name of this gate."""
    centroids: Literal["learned", "semantic"] = "learned"
    """How the gate starts: at random, or from clusters of the token embeddings."""

    def complaint(self, num_experts: int, top_k: int) -> str | None:
        """One expert a token."""
        return None if top_k == 1 else CORE.say("one_expert_a_token", gate=self.kind, top_k=top_k)

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """The weight is a sigmoid of the score."""
        return False


class Soft(Gate):
    """Soft MoE: every slot of an expert is a mixture of tokens, every token a mixture of slots."""

    sees_the_batch: ClassVar[bool] = True
    not_tuned: ClassVar[str | None] = CORE.say("slots_read_ahead")
    not_served: ClassVar[str | None] = CORE.say("slots_mix_later_tokens")
    weighs_by_itself: ClassVar[bool] = True
    kind: Literal["soft"] = "soft"
    """The name of this gate."""
    slots_per_expert: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    """How many mixtures of tokens each expert computes for each sequence."""
    normalise: bool = True
    """Unit length for tokens and slots, with one learnt scale: without it wide models saturate (Puigcerver, section
    2.3)."""


class Hash(Gate):
    """A table from token to experts: nothing is learnt about where to go."""

    tuned_so: ClassVar[str] = (
        "experts specialise under the table; only `weights: learned` has something to learn"
    )
    weighs_by_itself: ClassVar[bool] = True
    kind: Literal["hash"] = "hash"
    """The name of this gate."""
    choice: Literal["balanced", "random", "clustered"] = "random"
    """How the table is made: loads evened by how often each token occurs in the training logs (without logs by the order of
    the vocabulary), at random, or by clusters of the embeddings."""
    weights: Literal["equal", "learned"] = "equal"
    """Equal weights, or the softmax of a learnt gate over the table's experts."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    """Of the random table."""

    @property
    def counts_tokens(self) -> bool:
        """Whether the table is made from how often each token occurs."""
        return self.choice == "balanced"

    def sums_to_one(self, norm_topk_prob: bool) -> bool:
        """Both kinds of weights do."""
        return True


class Hierarchical(Gate):
    """Domain, then group, then expert: the product of three softmaxes, and the k best of all. Equal, contiguous parts."""

    tuned_so: ClassVar[str] = "every level has its own map"
    kind: Literal["hierarchical"] = "hierarchical"
    """The name of this gate."""
    selection_bias: bool = False
    """A bias for each expert that counts for the choice only."""
    num_domains: Annotated[int, Field(ge=1, le=1024)] = 1
    """Into how many domains the experts are cut."""
    groups_per_domain: Annotated[int, Field(ge=1, le=1024)] = 1
    """Into how many groups each domain is cut."""

    @property
    def num_groups(self) -> int:
        """Groups of all domains."""
        return self.num_domains * self.groups_per_domain

    def complaint(self, num_experts: int, top_k: int) -> str | None:
        """Groups are of equal size."""
        if num_experts % self.num_groups:
            return CORE.say("tree_uneven", num_experts=num_experts, num_groups=self.num_groups)
        return None


GateSpec = Annotated[
    SoftmaxTopk
    | SigmoidGroups
    | Sparsemax
    | TopP
    | Switch
    | GshardTop2
    | NoisyTopk
    | Sinkhorn
    | Quantile
    | ExpertChoice
    | Base
    | Soft
    | Hash
    | Hierarchical,
    Field(discriminator="kind"),
]


def check_gate(gate: Gate, capacity: CapacitySpec | None, num_experts: int, top_k: int) -> None:
    """Raise ValueError when a gate cannot serve so many experts, or limits loads already by itself."""
    refuse(gate_faults(gate, capacity, num_experts, top_k))


def gate_faults(gate: Gate, capacity: CapacitySpec | None, num_experts: int, top_k: int) -> Iterator[Fault]:
    """Why a gate cannot serve so many experts, and whether it limits loads already by itself."""
    complaint = gate.complaint(num_experts, top_k)
    if complaint is not None:
        yield ("gate",), complaint
    if capacity is not None and isinstance(gate, Soft | ExpertChoice | Base):
        yield ("capacity",), CORE.say("even_by_itself", gate=gate.kind)
