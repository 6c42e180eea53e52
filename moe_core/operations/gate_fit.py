"""A gate fitted on what it will see: tokens of known domains in, one row for each domain out.

Tokens count so that every domain has the same weight. The second moment M of the inputs, shrunk towards a multiple of
the identity, whitens them: a direction in which all tokens are large says no more than any other. Rows have no
constant term, because the router has none.

Shapes: N tokens, D model width, C domains, E experts.
Source: Hoerl and Kennard 1970 (ridge); Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature); Platt
1999, "Probabilistic Outputs for Support Vector Machines" (labels that are not sure, where few tell the temperature); what is
mended is the gate of mean hidden states, taken before the norm and over padding, that merging tools use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
SHARPEST, SEARCH_STEPS, PRECISION = 12.0, 60, 1e-6
# Where a cost may have several valleys: so many places are tried, and what costs so few nats more is as good.
PLACES, BISECTIONS, SLACK = 49, 8, 0.05
# So few nats above an even gate are no loss where nothing was found to gain.
NO_LOSS = 0.01


@dataclass(frozen=True, slots=True)
class Labelled:
    """Real tokens as a router sees them, their domain, and the prompt that each belongs to."""

    x_ND: Tensor
    domain_N: Tensor
    prompt_N: Tensor

    def at(self, chosen_N: Tensor) -> Labelled:
        """Some of the tokens: (N,) bool."""
        return Labelled(self.x_ND[chosen_N], self.domain_N[chosen_N], self.prompt_N[chosen_N])

    def mean(self, figure_N: Tensor, num_domains: int) -> float:
        """The mean of a figure of each token, every domain alike."""
        return float((self.weights_N(num_domains) * figure_N.double()).sum())

    def weights_N(self, num_domains: int) -> Tensor:
        """(N,) float64 that sum to one, the same sum for each domain that has tokens."""
        count_C = torch.bincount(self.domain_N, minlength=num_domains).double()
        weight_N = 1.0 / count_C[self.domain_N]
        return weight_N / weight_N.sum()

    def unsure_NC(self, num_domains: int) -> Tensor:
        """(N, C) float64: each token's domain as sure as the n tokens of a domain make it, (n + 1) / (n + C).

        With sure labels a gate that is right about a few tokens could not be too sharp.
        """
        count_C = torch.bincount(self.domain_N, minlength=num_domains).double()
        count_N1 = count_C[self.domain_N, None]
        return (one_hot(self.domain_N, num_domains) * count_N1 + 1.0) / (count_N1 + num_domains)

    def standard_error(self, figure_N: Tensor, num_domains: int) -> float:
        """Of `mean`: tokens of one prompt are taken for as alike as they are, and not for less than alike."""
        figure_N, weight_N = figure_N.double(), self.weights_N(num_domains)
        apart_N = weight_N * (figure_N - (weight_N * figure_N).sum())
        prompts, place_N = torch.unique(self.prompt_N, return_inverse=True)
        apart_P = torch.zeros(len(prompts)).double().index_add_(0, place_N, apart_N)
        return float(torch.maximum(apart_N.square().sum(), apart_P.square().sum()).sqrt())


def fit_rows(
    seen: Labelled, num_domains: int, kind: Literal["ridge", "logistic", "mean"], ridge: float
) -> Tensor:
    """(C, D) float64: the row with the highest product is the token's domain."""
    x_ND, weight_N = seen.x_ND.double(), seen.weights_N(num_domains)
    label_NC = one_hot(seen.domain_N, num_domains).double()
    sums_CD = (label_NC * weight_N[:, None]).T @ x_ND
    if kind == "mean":
        return normalize(sums_CD, dim=-1)
    shrunk_DD = _shrunk_moment(x_ND, weight_N, ridge)
    if kind == "ridge":
        target_NC = label_NC - 1.0 / num_domains
        cross_CD = (target_NC * weight_N[:, None]).T @ x_ND
        return torch.linalg.solve(shrunk_DD, cross_CD.T).T
    whiten_DD = _inverse_root(shrunk_DD)
    return _logistic(x_ND @ whiten_DD, seen.domain_N, weight_N, num_domains, ridge) @ whiten_DD


def _shrunk_moment(x_ND: Tensor, weight_N: Tensor, ridge: float) -> Tensor:
    moment_DD = (x_ND * weight_N[:, None]).T @ x_ND
    return moment_DD + ridge * moment_DD.diagonal().mean() * torch.eye(moment_DD.shape[0]).double()


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


def grounded(rows_CD: Tensor, seen: Labelled, ridge: float) -> Tensor:
    """(C, D) float64: the same rows less one of all, so that tokens get about nothing from the row of their own domain.

    A softmax does not see it. Scores of single experts do: they stay those of their model, and others' are pushed down.
    """
    num_domains = rows_CD.shape[0]
    x_ND, weight_N = seen.x_ND.double(), seen.weights_N(num_domains)
    shrunk_DD = _shrunk_moment(x_ND, weight_N, ridge)
    own_N = (x_ND * rows_CD[seen.domain_N]).sum(-1)
    return rows_CD - torch.linalg.solve(shrunk_DD, (weight_N * own_N) @ x_ND)


def divergence(logits_NC: Tensor, seen: Labelled) -> float:
    """KL in nats from the tokens' domains to the softmax of (N, C) float64 logits, every domain alike."""
    losses_N = cross_entropy(logits_NC, seen.domain_N, reduction="none")
    return seen.mean(losses_N, logits_NC.shape[1])


def calibrated_temperature(cost: Callable[[float], float]) -> float:
    """The temperature with the least cost, which is told of its inverse.

    A KL from domains to a softmax is convex in the inverse temperature, and so has one valley in its logarithm.
    """
    return math.exp(-_lowest(lambda log_sharpness: cost(math.exp(log_sharpness)), -SHARPEST, SHARPEST))


def cautious_temperature(cost: Callable[[float], float], slack: float = SLACK) -> float:
    """The highest temperature whose cost is at most `slack` above the least, where there may be several valleys.

    Choices of k experts make a cost of steps: once every token finds its experts, sharper gates are neither better nor
    told apart by the few tokens that are asked.
    """

    def at(log_sharpness: float) -> float:
        return cost(math.exp(log_sharpness))

    step = 2.0 * SHARPEST / (PLACES - 1)
    costs = {place: at(place * step - SHARPEST) for place in range(PLACES)}
    best = min(costs, key=costs.__getitem__) * step - SHARPEST
    best = _lowest(at, best - step, best + step)
    bound = min(at(best), *costs.values()) + slack
    first = next((place for place in costs if costs[place] <= bound), None)
    # Between the last place that is too dear and the first that is not.
    high = best if first is None else min(best, first * step - SHARPEST)
    low = high - step
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if at(middle) <= bound else (middle, high)
    return math.exp(-high)


def temperature_of_chance(cost: Callable[[float], float]) -> float:
    """The lowest temperature from 1 on that costs hardly more than an even gate: where even is as good, what is enough."""
    low, high = 0.0, SHARPEST
    bound = cost(0.0) + NO_LOSS
    if cost(1.0) <= bound:
        return 1.0
    for _ in range(SEARCH_STEPS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if cost(math.exp(-middle)) <= bound else (middle, high)
    return math.exp(high)


def _lowest(at: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley between two places is lowest, by golden sections."""
    for _ in range(SEARCH_STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if at(left) <= at(right):
            high = right
        else:
            low = left
        if high - low < PRECISION:
            break
    return (low + high) / 2.0


def accuracy(share_NC: Tensor, seen: Labelled) -> tuple[float, float]:
    """Share of tokens, and of whole prompts, that give most to their own domain; mean over domains.

    `share_NC` (N, C) is what each token gives to each domain.
    """
    num_domains = share_NC.shape[1]
    tokens = seen.mean(share_NC.argmax(-1) == seen.domain_N, num_domains)
    prompts, place_N = torch.unique(seen.prompt_N, return_inverse=True)
    summed_PC = torch.zeros(len(prompts), num_domains).double().index_add_(0, place_N, share_NC.double())
    domain_P = torch.zeros(len(prompts), dtype=torch.long).scatter_(0, place_N, seen.domain_N)
    whole = Labelled(summed_PC, domain_P, prompts)
    return tokens, whole.mean(summed_PC.argmax(-1) == domain_P, num_domains)
