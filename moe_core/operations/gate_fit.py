"""A gate fitted on what it will see: tokens of known domains in, one row for each domain out.

Tokens count so that every domain has the same weight. The second moment M of the inputs, shrunk towards a multiple of
the identity, whitens them: a direction in which all tokens are large says no more than any other. Rows have no
constant term, because the router has none.

Shapes: N tokens, D model width, C domains.
Source: Hoerl and Kennard 1970 (ridge); Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature); what is
mended is the gate of mean hidden states, taken before the norm and over padding, that merging tools use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
SHARPEST, SEARCH_STEPS = 12.0, 60


@dataclass(frozen=True, slots=True)
class Labelled:
    """Real tokens as a router sees them, their domain, and the prompt that each belongs to."""

    x_ND: Tensor
    domain_N: Tensor
    prompt_N: Tensor
    # (N, C) float64: the log share that each domain's experts have by themselves, without its row; None where it is even.
    own_NC: Tensor | None = None

    def at(self, chosen_N: Tensor) -> Labelled:
        """Some of the tokens: (N,) bool."""
        own_NC = None if self.own_NC is None else self.own_NC[chosen_N]
        return Labelled(self.x_ND[chosen_N], self.domain_N[chosen_N], self.prompt_N[chosen_N], own_NC)

    def weights_N(self, num_domains: int) -> Tensor:
        """(N,) float64 that sum to one, the same sum for each domain that has tokens."""
        count_C = torch.bincount(self.domain_N, minlength=num_domains).double()
        weight_N = 1.0 / count_C[self.domain_N]
        return weight_N / weight_N.sum()


def fit_rows(
    seen: Labelled, num_domains: int, kind: Literal["ridge", "logistic", "mean"], ridge: float
) -> Tensor:
    """(C, D) float64: the row with the highest product is the token's domain."""
    x_ND, weight_N = seen.x_ND.double(), seen.weights_N(num_domains)
    label_NC = one_hot(seen.domain_N, num_domains).double()
    sums_CD = (label_NC * weight_N[:, None]).T @ x_ND
    if kind == "mean":
        return normalize(sums_CD, dim=-1)
    moment_DD = (x_ND * weight_N[:, None]).T @ x_ND
    shrunk_DD = moment_DD + ridge * moment_DD.diagonal().mean() * torch.eye(moment_DD.shape[0]).double()
    if kind == "ridge":
        target_NC = label_NC - 1.0 / num_domains
        cross_CD = (target_NC * weight_N[:, None]).T @ x_ND
        return torch.linalg.solve(shrunk_DD, cross_CD.T).T
    whiten_DD = _inverse_root(shrunk_DD)
    return _logistic(x_ND @ whiten_DD, seen.domain_N, weight_N, num_domains, ridge) @ whiten_DD


def _inverse_root(symmetric_DD: Tensor) -> Tensor:
    value_D, vector_DD = torch.linalg.eigh(symmetric_DD)
    return (vector_DD / value_D.sqrt()) @ vector_DD.T


def _logistic(x_ND: Tensor, domain_N: Tensor, weight_N: Tensor, num_domains: int, ridge: float) -> Tensor:
    """Rows of a multinomial logistic regression on whitened tokens: (C, D)."""
    rows_CD = torch.zeros(num_domains, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([rows_CD], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses_N = cross_entropy(x_ND @ rows_CD.T, domain_N, reduction="none")
        loss = (weight_N * losses_N).sum() + 0.5 * ridge * rows_CD.square().mean(0).sum()
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return rows_CD.detach()


def domain_logits(rows_CD: Tensor, seen: Labelled) -> Tensor:
    """(N, C) float64: the log share of each domain in the gate, up to what all of them have in common."""
    logits_NC = seen.x_ND.double() @ rows_CD.T
    return logits_NC if seen.own_NC is None else logits_NC + seen.own_NC


def divergence(rows_CD: Tensor, seen: Labelled) -> float:
    """KL in nats from the tokens' domains to the gate's probabilities, every domain alike."""
    losses_N = cross_entropy(domain_logits(rows_CD, seen), seen.domain_N, reduction="none")
    return float((seen.weights_N(rows_CD.shape[0]) * losses_N).sum())


def calibrated_temperature(rows_CD: Tensor, seen: Labelled) -> float:
    """The temperature at which the gate's probabilities are nearest to the domains (least KL)."""
    # In the inverse temperature the KL is convex, whatever the models say themselves, so in its logarithm it has one valley.
    low, high = -SHARPEST, SHARPEST

    def at(log_sharpness: float) -> float:
        return divergence(rows_CD * math.exp(log_sharpness), seen)

    for _ in range(SEARCH_STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if at(left) <= at(right):
            high = right
        else:
            low = left
    return math.exp(-(low + high) / 2.0)


def accuracy(rows_CD: Tensor, seen: Labelled) -> tuple[float, float]:
    """Share of tokens, and of whole prompts, of which their own domain has the largest share; mean over domains."""
    log_probs_NC = torch.log_softmax(domain_logits(rows_CD, seen), dim=-1)
    right_N = (log_probs_NC.argmax(-1) == seen.domain_N).double()
    tokens = float((seen.weights_N(rows_CD.shape[0]) * right_N).sum())
    prompts, place_N = torch.unique(seen.prompt_N, return_inverse=True)
    summed_PC = torch.zeros(len(prompts), rows_CD.shape[0]).double().index_add_(0, place_N, log_probs_NC)
    domain_P = torch.zeros(len(prompts), dtype=torch.long).scatter_(0, place_N, seen.domain_N)
    whole = Labelled(summed_PC, domain_P, prompts)
    right_P = (summed_PC.argmax(-1) == domain_P).double()
    return tokens, float((whole.weights_N(rows_CD.shape[0]) * right_P).sum())
