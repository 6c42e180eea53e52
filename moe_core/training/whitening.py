"""A gate learns in whitened coordinates: each direction of its input counts alike, and the common one is a bias.

The inputs of a router share a large mean, and a few directions carry most of their variance. A step in the gate's own
weights moves the logits of all tokens together: one expert takes all, then another. Here the gate is written as
logits = V · A (x - mean) + b, with A the inverse square root of the inputs' covariance, and V and b learn. No parameter
is added: a direction u with u · x ≈ 1 for every input carries b, so the gate stays one plain matrix.

Shapes: T tokens, D model width, E experts.
Source: whitening as a preconditioner, e.g. Desjardins et al. 2015, "Natural Neural Networks"; folding it back is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Share of the mean variance that every direction is given, so that those without variance are not blown up.
SHRINKAGE = 1e-2


@dataclass(frozen=True, slots=True)
class Whitening:
    """The coordinates of one router's inputs; all float32."""

    # A, symmetric, and its inverse.
    whiten_DD: Tensor
    unwhiten_DD: Tensor
    mean_D: Tensor
    # u: every input measures about one along it.
    one_D: Tensor

    @classmethod
    def of(cls, input_TD: Tensor) -> Whitening:
        """The coordinates in which these inputs have mean 0 and about unit variance in every direction."""
        input_TD = input_TD.double()
        mean_D = input_TD.mean(0)
        centred_TD = input_TD - mean_D
        covariance_DD = centred_TD.t() @ centred_TD / input_TD.shape[0]
        ridge = SHRINKAGE * covariance_DD.diagonal().mean().clamp(min=1e-12)
        covariance_DD.diagonal().add_(ridge)
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        whiten_DD = (vectors_DD * values_D.rsqrt()) @ vectors_DD.t()
        unwhiten_DD = (vectors_DD * values_D.sqrt()) @ vectors_DD.t()
        # Least squares: the direction along which all inputs are nearest to one.
        one_D = torch.linalg.solve(covariance_DD + torch.outer(mean_D, mean_D), mean_D)
        return cls(whiten_DD.float(), unwhiten_DD.float(), mean_D.float(), one_D.float())

    def split(self, weight_ED: Tensor) -> tuple[Tensor, Tensor]:
        """V (E, D) and b (E,) of a gate; `join` gives the same gate back."""
        return weight_ED @ self.unwhiten_DD, weight_ED @ self.mean_D

    def join(self, v_ED: Tensor, b_E: Tensor) -> Tensor:
        """The plain gate (E, D) that V and b make."""
        scaled_ED = v_ED @ self.whiten_DD
        return scaled_ED + torch.outer(b_E - scaled_ED @ self.mean_D, self.one_D)

    def gradients(self, gradient_ED: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of V and b from that of the plain gate: the transpose of `join`."""
        along_E = gradient_ED @ self.one_D
        v_ED = (gradient_ED - torch.outer(along_E, self.mean_D)) @ self.whiten_DD
        return v_ED, along_E
