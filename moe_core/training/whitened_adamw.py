"""AdamW on gates in whitened coordinates: plain gradients in, plain gates written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_core.training.optimiser import MasterAdamW
from moe_core.training.whitening import Whitening


class WhitenedAdamW:
    """One step at a time: each gate's V and b learn, and the gate is written from them. E experts, D model width."""

    def __init__(
        self,
        gates: Mapping[str, Tensor],
        whitenings: Mapping[str, Whitening],
        *,
        weight_decay: float = 0.0,
    ) -> None:
        self.gates, self.whitenings = dict(gates), dict(whitenings)
        parts: dict[str, Tensor] = {}
        for name, gate in self.gates.items():
            parts[f"{name}.v"], parts[f"{name}.b"] = self.whitenings[name].split(gate.detach().float())
        # The gate is linear in V and b together, so that what pulls at both pulls at the plain gate alike.
        self._masters = MasterAdamW(parts, weight_decay=weight_decay)

    def step(self, gradients_float: Sequence[Tensor], learning_rate: float, clip_norm: float) -> float:
        """Apply the gates' float32 gradients, each clipped by its own norm; returns the norm of all before that.

        Raises NonFiniteLoss, with nothing changed, when a gradient is not finite.
        """
        mapped: list[Tensor] = []
        for name, gradient_ED in zip(self.gates, gradients_float, strict=True):
            mapped += self.whitenings[name].gradients(gradient_ED)
        norm = self._masters.step(mapped, learning_rate, clip_norm, clip_each=True)
        self._write()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        return self._masters.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave; raises CheckpointError when a gate is missing."""
        self._masters.restore(tensors)
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        working = self._masters.working
        for name, gate in self.gates.items():
            gate.copy_(self.whitenings[name].join(working[f"{name}.v"], working[f"{name}.b"]))
