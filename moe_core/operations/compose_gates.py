"""The gates of a composed model: a row for each domain, as sharp as is best for the gate that will run.

Where a softmax of all experts alone chooses, its probabilities are brought nearest to the domains. Where more has a say (a
balancing bias, groups, scores of single experts), the gate function itself is asked at each temperature, with its biases
and groups, and brought nearest to what each model's own gate would do with the tokens of its domain.

Balancing biases mean something beside those of the same model only: whatever one model's have in common decides nothing
in it and everything between two. So they are moved, all of a model alike, to where the k-th best of each model's own
choice is as high as that of the others.

Shapes: N tokens, D model width, C domains (models), E experts of the composed model, K top_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from moe_core.model.layers import MoeMlp, Router
from moe_core.operations.gate_fit import (
    Labelled,
    accuracy,
    calibrated_temperature,
    cautious_temperature,
    fit_rows,
    grounded,
    temperature_of_chance,
)
from moe_core.routers import GateCall, Routing
from moe_core.routers.gates import decide
from moe_core.routers.scores import choosing_scores
from moe_core.spec import MoeSpec
from moe_core.spec.gate import Base, LinearGate, SigmoidGroups, Sparsemax
from moe_core.spec.operations import ComposeSpec

# What is routed has so little for the shares of all experts, and as little evenly: a token that reaches no expert of its
# own has a cost and not an infinite one, and of two temperatures with the same choices that with better shares is found.
UNROUTED = 0.01
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Samples:
    """The tokens that rows are fitted on, that set the temperature, and that are reported on."""

    fitted: Labelled
    tuned: Labelled
    held_out: Labelled
    # (N,) bool: held-out tokens that are in no other prompt.
    new_N: Tensor


@dataclass(frozen=True, slots=True)
class Made:
    """Some tokens before the gate that is made, how sharp it is still to be settled."""

    seen: Labelled
    moe: MoeSpec
    biases: dict[str, Tensor]
    # (N, E) and (N, C) float64: what the models' own rows say, and the rows of the domains.
    own_NE: Tensor
    domain_NC: Tensor
    # (N, E) float64 that sum to one: what the model of a token's domain gives its experts by itself.
    wanted_NE: Tensor

    @classmethod
    def of(cls, router: Router, rows_CD: Tensor, models: Sequence[Router], seen: Labelled) -> Made:
        """Tokens before a router whose rows are still the models' own; none of `models` has a gate if they are dense."""
        num_experts = router.moe.num_experts
        return cls(
            seen,
            # Whether an expert is full hangs on the batch.
            router.moe.model_copy(update={"capacity": None}),
            {name: tensor for name, tensor in router.tensors.items() if tensor.ndim == 1},
            (seen.x_ND.float() @ router.weight.T.float()).double(),
            seen.x_ND.double() @ rows_CD.T,
            wanted(models, seen) if models else one_hot(seen.domain_N, num_experts).double(),
        )

    @property
    def num_domains(self) -> int:
        """How many models there are."""
        return self.domain_NC.shape[1]

    def routing(self, sharpness: float) -> Routing:
        """The decision of the gate itself, its domain rows so many times as long."""
        each = self.moe.num_experts // self.num_domains
        # The gate divides by the models' own temperature.
        scale = sharpness * self.moe.temperature_at()
        logits_NE = self.own_NE + scale * self.domain_NC.repeat_interleave(each, dim=-1)
        return asked(self.moe, {"weight": torch.eye(self.moe.num_experts), **self.biases}, logits_NE)

    def cost(self, sharpness: float) -> float:
        """KL in nats to the gate from the domains, or where more than its shares chooses from the models' own gates."""
        return self.seen.mean(self.costs_N(sharpness), self.num_domains)

    def unsure_cost(self, sharpness: float) -> float:
        """The same, up to what no temperature changes, of labels that are as sure as so few tokens make them."""
        return self.seen.mean(
            self.costs_N(sharpness, self.seen.unsure_NC(self.num_domains)), self.num_domains
        )

    def costs_N(self, sharpness: float, label_NC: Tensor | None = None) -> Tensor:
        """(N,) float64: what each token adds to the cost; labels count where the shares of a softmax alone choose."""
        if shares_choose(self.moe):
            labels = self.seen.domain_N if label_NC is None else label_NC
            return cross_entropy(self._domain_logits(sharpness), labels, reduction="none")
        routing = self.routing(sharpness)
        shares_NE = (1.0 - 2.0 * UNROUTED) * routed(routing) + UNROUTED * routing.probs_TE.double()
        shares_NE = shares_NE + UNROUTED / self.moe.num_experts
        apart_NE = self.wanted_NE * (self.wanted_NE.clamp(min=TINY).log() - shares_NE.log())
        return apart_NE.sum(-1)

    def beats_chance(self, sharpness: float) -> bool:
        """Whether the domains' rows save more than a standard error of what a gate without them costs."""
        saved_N = self.costs_N(0.0) - self.costs_N(sharpness)
        return self.seen.mean(saved_N, self.num_domains) > self.seen.standard_error(saved_N, self.num_domains)

    def _domain_logits(self, sharpness: float) -> Tensor:
        """(N, C): the log share of each domain, up to what all have in common."""
        own_NE = self.own_NE + self.biases["bias"].double() if "bias" in self.biases else self.own_NE
        own_NE = own_NE / self.moe.temperature_at()
        own_NC = own_NE.unflatten(-1, (self.num_domains, -1)).logsumexp(-1)
        return own_NC + sharpness * self.domain_NC

    def weight_of_domains(self, sharpness: float) -> Tensor:
        """(N, C) float64: the weight that each model's experts get of a token, equal ones told apart by their shares."""
        routing = self.routing(sharpness)
        share_NE = routed(routing) + 1e-6 * routing.probs_TE.double()
        return share_NE.unflatten(-1, (self.num_domains, -1)).sum(-1)

    def kept_choices(self, sharpness: float) -> float:
        """The share of a model's own choices that are chosen, mean over tokens, every domain alike."""
        chosen_NE, own_NE = routed(self.routing(sharpness)) > 0.0, self.wanted_NE > 0.0
        kept_N = (chosen_NE & own_NE).sum(-1) / own_NE.sum(-1).clamp(min=1)
        return self.seen.mean(kept_N, self.num_domains)


def fit_gate(layer: MoeMlp, spec: ComposeSpec, models: Sequence[Router], samples: Samples) -> dict[str, Any]:
    """Give a router, whose rows are the models' own, the rows of the domains; what is told of it.

    `models` are the routers of the mixtures that it is made of, none where they are dense.
    """
    num_domains, router = len(spec.domains), layer.router
    if "selection_bias" in router.tensors:
        level_biases(router, models, samples.fitted)
    rows_CD = fit_rows(samples.fitted, num_domains, spec.gate, spec.ridge)
    if not shifts_cancel(layer.moe):
        rows_CD = grounded(rows_CD, samples.fitted, spec.ridge)
    tuned, held_out = (Made.of(router, rows_CD, models, seen) for seen in (samples.tuned, samples.held_out))
    temperature, beats_chance = settled_temperature(tuned)
    # The gate divides by the models' own temperature.
    domain_ED = (rows_CD / temperature * layer.moe.temperature_at()).float()
    router.weight.add_(domain_ED.repeat_interleave(layer.moe.num_experts // num_domains, dim=0))
    return {
        **told(held_out, temperature, samples),
        # Of dense models none has a choice of its own.
        "own_choices": held_out.kept_choices(1.0 / temperature) if models else None,
        "beats_chance": beats_chance,
        "fitted_tokens": len(samples.fitted.domain_N),
    }


def settled_temperature(tuned: Made) -> tuple[float, bool]:
    """How far the rows of the domains are divided, and whether the tokens that tell say that they are of use at all.

    Where they do not, any high temperature is as good and a low one is a guess: 1 is kept, or what makes the gate about
    even if it costs more than that.
    """
    search = calibrated_temperature if shares_choose(tuned.moe) else cautious_temperature
    temperature = search(tuned.unsure_cost)
    if tuned.beats_chance(1.0 / temperature):
        return temperature, True
    return min(max(temperature, 1.0), temperature_of_chance(tuned.cost)), False


def told(made: Made, temperature: float, samples: Samples) -> dict[str, Any]:
    """The figures of a gate on held-out tokens."""
    share_NC, new_N = made.weight_of_domains(1.0 / temperature), samples.new_N
    tokens, prompts = accuracy(share_NC, made.seen)
    return {
        "token_accuracy": tokens,
        "prompt_accuracy": prompts,
        # None where every held-out token is one that was fitted on.
        "new_token_accuracy": accuracy(share_NC[new_N], made.seen.at(new_N))[0]
        if bool(new_N.any())
        else None,
        "new_tokens": int(new_N.sum()),
        "chance": 1.0 / made.num_domains,
        "temperature": temperature,
        "kl_before": made.cost(1.0),
        "kl": made.cost(1.0 / temperature),
        "held_out_tokens": len(made.seen.domain_N),
    }


def shares_choose(moe: MoeSpec) -> bool:
    """Whether the experts with the largest shares of a softmax are those chosen, and nothing else has a say."""
    gate = moe.gate
    if isinstance(gate, Sparsemax | Base) or not isinstance(gate, LinearGate) or gate.selection_bias:
        return False
    return not isinstance(gate, SigmoidGroups) or gate.scores == "softmax"


def shifts_cancel(moe: MoeSpec) -> bool:
    """Whether what all logits have in common changes no weight."""
    gate = moe.gate
    return not isinstance(gate, Base) and (not isinstance(gate, SigmoidGroups) or gate.scores == "softmax")


def asked(moe: MoeSpec, weights: dict[str, Tensor], x_ND: Tensor) -> Routing:
    """What a gate decides by itself, no expert ever full."""
    call = GateCall(x_ND.float(), moe.top_k, moe.norm_topk_prob, moe.temperature_at())
    return decide(moe.model_copy(update={"capacity": None}), weights, call)


def routed(routing: Routing) -> Tensor:
    """(N, E) float64: the weight of each expert over the sum of a token's; zero for one that is not chosen."""
    weight_NE = torch.zeros_like(routing.probs_TE).scatter_add(
        -1, routing.expert_ids_TK.clamp(min=0), routing.weights_TK
    )
    return weight_NE.double() / weight_NE.double().sum(-1, keepdim=True).clamp(min=TINY)


def wanted(models: Sequence[Router], seen: Labelled) -> Tensor:
    """(N, E) float64: what the model of each token's domain gives its own experts, none to those of the others."""
    each = models[0].moe.num_experts
    wanted_NE = torch.zeros(len(seen.domain_N), each * len(models), dtype=torch.float64)
    for place, router in enumerate(models):
        mine_N = seen.domain_N == place
        own = slice(place * each, (place + 1) * each)
        wanted_NE[mine_N, own] = routed(asked(router.moe, router.tensors, seen.x_ND[mine_N]))
    return wanted_NE


def level_biases(router: Router, models: Sequence[Router], seen: Labelled) -> None:
    """Move the balancing biases of each model so that the k-th best of its own choices is as high as the others'."""
    heights = []
    for place, model in enumerate(models):
        routing = asked(model.moe, model.tensors, seen.x_ND[seen.domain_N == place])
        scores_NE = choosing_scores(model.moe.gate, routing)
        kth_N = scores_NE.topk(model.moe.top_k, dim=-1).values[:, -1]
        heights.append(kth_N.double().mean())
    moved_C = torch.stack(heights).mean() - torch.stack(heights)
    each = router.moe.num_experts // len(models)
    router.tensors["selection_bias"].add_(moved_C.float().repeat_interleave(each))
