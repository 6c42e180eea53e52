"""AdamW on float32 masters of weights that the model keeps in its own dtype, with a schedule and clipping by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from moe_core.errors import CheckpointError, NonFiniteLoss
from moe_core.kernels.cpu import optimising

# Numbers updated at a time: gradient, master, both moments and the working weight stay in the cache between the passes.
BLOCK = 128 * 1024
KEYS = ("step", "exp_avg", "exp_avg_sq")


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
        self.betas, self.weight_decay = betas, weight_decay
        self._state = {
            name: (torch.zeros(()), torch.zeros_like(master), torch.zeros_like(master))
            for name, master in self.masters.items()
        }

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor], learning_rate: float, clip_norm: float, *, clip_each: bool
    ) -> float:
        """Apply gradients of any float dtype, in the order of the weights; returns the norm of all before clipping.

        `clip_each` clips every weight by its own norm, so that one layer's burst does not slow down the others.
        Raises NonFiniteLoss, with nothing changed, when a gradient is not finite.
        """
        named = dict(zip(self.working, gradients, strict=True))
        norms = {name: _norm(gradient) for name, gradient in named.items()}
        total = math.hypot(*norms.values())
        if not math.isfinite(total):
            worst = next(name for name, norm in norms.items() if not math.isfinite(norm))
            raise NonFiniteLoss.of("gradient_not_finite", name=worst)
        for name, gradient in named.items():
            norm = norms[name] if clip_each else total
            self._update(name, gradient, min(1.0, clip_norm / norm) if norm > 0.0 else 1.0, learning_rate)
        return total

    def tensors(self) -> dict[str, Tensor]:
        """Masters and both moments by name, for a checkpoint."""
        kept: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            kept[f"{name}.master"] = master
            kept.update({f"{name}.{key}": part for key, part in zip(KEYS, self._state[name], strict=True)})
        return kept

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave; raises CheckpointError when a weight is missing."""
        mine = self.tensors()
        for key, tensor in mine.items():
            if key not in tensors:
                raise CheckpointError(f"the checkpoint holds no {key}; it belongs to another layout")
            tensor.copy_(tensors[key])
        for name, weight in self.working.items():
            weight.copy_(self.masters[name])

    def _update(self, name: str, gradient: Tensor, scale: float, learning_rate: float) -> None:
        step, *moments = self._state[name]
        whole = (self.working[name], gradient, self.masters[name], *moments)
        if optimising.supports(*whole):
            step += 1
            optimising.adamw(
                whole, step=int(step), scale=scale, learning_rate=learning_rate, betas=self.betas,
                weight_decay=self.weight_decay,
            )  # fmt: skip
            return
        for working, part, master, average, square in zip(*map(_blocks, whole), strict=True):
            scaled = part.to(torch.float32, copy=True).mul_(scale)
            adamw(
                [master], [scaled], [average], [square], [], [step.clone()],
                amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=learning_rate,
                weight_decay=self.weight_decay, eps=1e-8, maximize=False, fused=True,
            )  # fmt: skip
            working.copy_(master)
        step += 1


def _blocks(tensor: Tensor) -> Sequence[Tensor]:
    """Views of some rows each, the same rows of every tensor of one shape."""
    flat = tensor.detach()
    rows = flat.view(-1, flat.shape[-1] if flat.ndim > 1 else 1)
    return rows.split(max(1, BLOCK // max(1, rows.shape[1])))


def _norm(gradient: Tensor) -> float:
    """Euclidean norm in float32; of 16 bits a block at a time, for torch would widen the whole first."""
    if optimising.supports(gradient):
        return optimising.norm(gradient)
    parts = [torch.linalg.vector_norm(block, dtype=torch.float32) for block in _blocks(gradient)]
    return float(torch.stack(parts).norm()) if parts else 0.0
