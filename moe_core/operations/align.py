"""Bring the neurons of one expert into the order of another's, so that the two can be averaged.

The neurons of a feed-forward have no order of their own: averaging two experts neuron by neuron is only right when
neurons that do the same have the same place.

Shapes: F expert width, D model width, N tokens.
Source: Singh and Jaggi 2020, "Model Fusion via Optimal Transport"; Ainsworth et al. 2023, "Git Re-Basin" (weight matching);
Li et al. 2024, "Merge, Then Compress" (for experts).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from moe_core.kernels.gating import PLAIN, Gating
from moe_core.model.layers import MoeMlp
from moe_core.routers.assignment import assign

# What grouped experts hold, in the order of ExpertWeights; biases are None where there are none.
STORED = ("gate_up_E2FD", "down_EDF", "gate_up_bias_E2F", "down_bias_ED")


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert in float32: gate and up rows, and the way back, with their biases where there are any."""

    gate_up_2FD: Tensor
    down_DF: Tensor
    gating: Gating = PLAIN
    # That of gate and up goes with the neurons, that of the output does not.
    gate_up_bias_2F: Tensor | None = None
    down_bias_D: Tensor | None = None

    @classmethod
    def of(cls, layer: MoeMlp, expert: int) -> ExpertWeights:
        """A copy of one expert's weights."""
        experts = layer.experts
        biases = (getattr(experts, name) for name in STORED[2:])
        return cls(
            experts.get_parameter(STORED[0])[expert].detach().float(),
            experts.get_parameter(STORED[1])[expert].detach().float(),
            experts.gating,
            *(bias if bias is None else bias[expert].detach().float() for bias in biases),
        )

    def put(self, layer: MoeMlp, expert: int) -> None:
        """Write the weights into a place of a layer, in its dtype."""
        parts = (self.gate_up_2FD, self.down_DF, self.gate_up_bias_2F, self.down_bias_D)
        with torch.no_grad():
            for name, part in zip(STORED, parts, strict=True):
                if part is not None:
                    getattr(layer.experts, name)[expert] = part

    def ordered(self, order_F: Tensor) -> ExpertWeights:
        """The same function with its neurons in another order (or with some of them only)."""
        gate_up_2FD, bias_2F = (
            part if part is None else part.unflatten(0, (2, -1))[:, order_F].flatten(0, 1)
            for part in (self.gate_up_2FD, self.gate_up_bias_2F)
        )
        assert gate_up_2FD is not None
        return ExpertWeights(gate_up_2FD, self.down_DF[:, order_F], self.gating, bias_2F, self.down_bias_D)

    def activations(self, hidden_ND: Tensor) -> Tensor:
        """act(gate(x)) · up(x) of each neuron: (N, F)."""
        gate_NF, up_NF = linear(hidden_ND.float(), self.gate_up_2FD, self.gate_up_bias_2F).chunk(2, dim=-1)
        return self.gating(gate_NF, up_NF)

    def outputs(self, hidden_ND: Tensor) -> Tensor:
        """The expert's output on each token: (N, D)."""
        return linear(self.activations(hidden_ND), self.down_DF, self.down_bias_D)


def neuron_features(expert: ExpertWeights, hidden_ND: Tensor | None) -> Tensor:
    """(F, …) what a neuron is known by: its three weight vectors, each of length one, and what it does on tokens."""
    gate_FD, up_FD = expert.gate_up_2FD.chunk(2)
    parts = [normalize(part, dim=-1) for part in (gate_FD, up_FD, expert.down_DF.t())]
    if hidden_ND is not None and hidden_ND.shape[0]:
        parts.append(normalize(expert.activations(hidden_ND).t(), dim=-1))
    return torch.cat(parts, dim=-1)


def aligned(reference: ExpertWeights, other: ExpertWeights, hidden_ND: Tensor | None = None) -> ExpertWeights:
    """`other` with its neurons in the order of the reference's; tokens, if given, tell what neurons do."""
    return other.ordered(matching(reference, other, hidden_ND))


def matching(reference: ExpertWeights, other: ExpertWeights, hidden_ND: Tensor | None = None) -> Tensor:
    """(F,) int64: for each neuron of the reference its most similar one of `other`, each taken once."""
    likeness_FF = neuron_features(reference, hidden_ND) @ neuron_features(other, hidden_ND).t()
    return torch.from_numpy(assign(-likeness_FF.double().numpy().astype(np.float64)))


def mean_of(experts: list[ExpertWeights], weights: list[float]) -> ExpertWeights:
    """The weighted mean of experts whose neurons are in one order; weights are made to sum to one."""
    total = sum(weights)
    shares = [weight / total for weight in weights] if total > 0 else [1.0 / len(experts)] * len(experts)

    def mean(name: str) -> Tensor | None:
        parts = [getattr(expert, name) for expert in experts]
        if parts[0] is None:
            return None
        return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)

    gate_up_2FD, down_DF = mean("gate_up_2FD"), mean("down_DF")
    assert gate_up_2FD is not None and down_DF is not None
    return ExpertWeights(
        gate_up_2FD, down_DF, experts[0].gating, mean("gate_up_bias_2F"), mean("down_bias_D")
    )
