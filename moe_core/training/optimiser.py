"""AdamW on float32 masters of weights that the model keeps in its own dtype, with a schedule and clipping by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_core.errors import CheckpointError, NonFiniteLoss


class MasterAdamW:
    """One step at a time: gradients of the working weights in, masters updated, working weights rounded from them."""

    def __init__(
        self,
        working: Mapping[str, Tensor],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        self.working = dict(working)
        self.masters = {name: weight.detach().float().clone() for name, weight in self.working.items()}
        self._adam = torch.optim.AdamW(
            list(self.masters.values()), lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    def step(
        self, gradients_float: Sequence[Tensor], learning_rate: float, clip_norm: float, *, clip_each: bool
    ) -> float:
        """Apply float32 gradients, in the order of the weights; returns the norm of all before clipping.

        `clip_each` clips every weight by its own norm, so that one layer's burst does not slow down the others.
        Raises NonFiniteLoss, with nothing changed, when a gradient is not finite.
        """
        gradients = dict(zip(self.working, gradients_float, strict=True))
        norms = {name: gradient.norm() for name, gradient in gradients.items()}
        total = float(torch.stack(list(norms.values())).norm()) if norms else 0.0
        if not math.isfinite(total):
            worst = next(name for name, norm in norms.items() if not math.isfinite(float(norm)))
            raise NonFiniteLoss.of("gradient_not_finite", name=worst)
        for name, gradient in gradients.items():
            norm = float(norms[name]) if clip_each else total
            self.masters[name].grad = gradient.mul_(min(1.0, clip_norm / norm)) if norm > 0.0 else gradient
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._write_back()
        return total

    def tensors(self) -> dict[str, Tensor]:
        """Masters and both moments by name, for a checkpoint."""
        kept: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            kept[f"{name}.master"] = master
            for key, value in self._adam.state[master].items():
                kept[f"{name}.{key}"] = value
        return kept

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave; raises CheckpointError when a weight is missing."""
        for name, master in self.masters.items():
            if f"{name}.master" not in tensors:
                raise CheckpointError(f"the checkpoint holds no {name}; it belongs to another layout")
            master.copy_(tensors[f"{name}.master"])
            keys = [key.removeprefix(f"{name}.") for key in tensors if key.startswith(f"{name}.")]
            self._adam.state[master] = {
                key: tensors[f"{name}.{key}"].to(master.device, copy=True) for key in keys if key != "master"
            }
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for name, weight in self.working.items():
            weight.copy_(self.masters[name])
