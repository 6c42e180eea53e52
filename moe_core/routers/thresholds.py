"""The bias of each expert at which equally many tokens choose it: prices of a balanced assignment.

Shapes: T tokens, E experts, K top_k, M = K + 1.
Source: the dual of the balanced assignment problem, solved one expert at a time (Bertsekas 1992, auction algorithms).
"""

from __future__ import annotations

import torch
from torch import Tensor


def balancing_bias(scores_TE: Tensor, top_k: int, num_iterations: int, start_E: Tensor) -> Tensor:
    """(E,) with mean zero: added to the scores, the k best of every token fall evenly on the experts, ties aside.

    One round moves one expert after the other to the bias at which T · K / E tokens (rounded) choose it, the others'
    biases kept; it ends early when a whole round moves nothing. T · K need not be a multiple of E.
    """
    num_tokens, num_experts = scores_TE.shape
    bias_E = start_E.clone()
    if not num_tokens or top_k >= num_experts:
        return bias_E
    ranking = _Ranking(scores_TE, bias_E, top_k)
    share = round(num_tokens * top_k / num_experts)
    for _ in range(num_iterations):
        before_E = bias_E.clone()
        for expert in range(num_experts):
            bias = _threshold(ranking.to_beat(expert) - scores_TE[:, expert], share)
            if bias is not None:
                bias_E[expert] = bias
                ranking.move(expert, scores_TE[:, expert] + bias)
        if torch.equal(before_E, bias_E):
            break
    return bias_E - bias_E.mean()


def _threshold(missing_T: Tensor, share: int) -> Tensor | None:
    """Halfway between the share-th and the next of what tokens miss to choose an expert; None where there are too few."""
    # A prior that leaves no other expert leaves nothing to beat; one that masks this expert can never be met.
    missing_T = missing_T[missing_T.isfinite()]
    if not 0 < share < missing_T.shape[0]:
        return None
    last = missing_T.kthvalue(share).values
    # The next one: the least above it, or an equal.
    following = missing_T.kthvalue(share + 1).values
    return (last + following) / 2


class _Ranking:
    """Each token's k + 1 best values, kept while one expert after the other moves.

    A move touches only tokens that have the expert among these, or get it there: about T · K / E of them.
    """

    def __init__(self, scores_TE: Tensor, bias_E: Tensor, top_k: int) -> None:
        self.top_k = top_k
        self.values_TE = scores_TE + bias_E
        self.best_TM = self.values_TE.topk(top_k + 1, dim=-1).values

    def to_beat(self, expert: int) -> Tensor:
        """(T,): the k-th best value of the other experts."""
        inside_T = self.values_TE[:, expert] >= self.best_TM[:, self.top_k - 1]
        return torch.where(inside_T, self.best_TM[:, self.top_k], self.best_TM[:, self.top_k - 1])

    def move(self, expert: int, values_T: Tensor) -> None:
        """Give an expert other values."""
        least_T = self.best_TM[:, self.top_k]
        changed_R = torch.nonzero((self.values_TE[:, expert] >= least_T) | (values_T > least_T))[:, 0]
        self.values_TE[:, expert] = values_T
        self.best_TM[changed_R] = self.values_TE[changed_R].topk(self.top_k + 1, dim=-1).values
