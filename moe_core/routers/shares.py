"""Softmax shares of rows of tokens, kept so that nothing is lost where one expert has almost all of them.

Shapes: t tokens at once, E experts; all float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.routers.logits import NEG_INF


@dataclass(frozen=True, slots=True)
class Shares:
    """Weights exp(logit) of experts, of which a share is the part in their sum."""

    logits_tE: Tensor
    is_masked_tE: Tensor
    best_t1: Tensor
    """The expert of the largest logit."""
    largest_t1: Tensor
    """That logit, and the largest one of the others."""
    second_t1: Tensor
    beside_tE: Tensor
    """Weights of all but the best one, in units of the second; the best one's is 0 here."""
    beside_t1: Tensor
    """Their sum."""
    scale_t1: Tensor
    """The unit of the second in that of the largest."""

    @classmethod
    def of(cls, logits_tE: Tensor) -> Shares:
        """The shares of float64 logits; -inf for a masked expert."""
        is_masked_tE = logits_tE == NEG_INF
        largest_t1, best_t1 = logits_tE.max(-1, keepdim=True)
        # Where all are masked, or all but one, any number will do.
        largest_t1 = torch.where(largest_t1 == NEG_INF, 0.0, largest_t1)
        others_tE = logits_tE.scatter(-1, best_t1, NEG_INF)
        second_t1 = others_tE.amax(-1, keepdim=True)
        second_t1 = torch.where(second_t1 == NEG_INF, largest_t1, second_t1)
        beside_tE = (others_tE - second_t1).exp()
        beside_t1 = beside_tE.sum(-1, keepdim=True)
        scale_t1 = (second_t1 - largest_t1).exp()
        return cls(logits_tE, is_masked_tE, best_t1, largest_t1, second_t1, beside_tE, beside_t1, scale_t1)

    @property
    def total_t1(self) -> Tensor:
        """The sum of all weights, in units of the largest."""
        return self.beside_t1 * self.scale_t1 + 1.0

    def weights_tE(self) -> Tensor:
        """Each weight, in units of the largest."""
        return (self.beside_tE * self.scale_t1).scatter_(-1, self.best_t1, 1.0)

    def rest_tE(self, weights_tE: Tensor) -> Tensor:
        """The weights of all others, for each expert, in units of the largest."""
        rest_tE = self.total_t1 - weights_tE
        return rest_tE.scatter_(-1, self.best_t1, self.beside_t1 * self.scale_t1)

    def log_rest_tE(self) -> Tensor:
        """The logsumexp of the logits of all others, for each expert."""
        log_tE = self.largest_t1 + self.rest_tE(self.weights_tE()).log()
        return log_tE.scatter_(-1, self.best_t1, self.second_t1 + self.beside_t1.log())
