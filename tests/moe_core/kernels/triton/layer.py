"""One layer of experts with its inputs, each surrounded by NaN, and the same in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.kernels.torch_grouped import swiglu_experts_torch
from moe_core.kernels.triton.experts import swiglu_experts_triton

# ‖out − truth‖ / ‖truth‖: bfloat16 has eight bits (and the interpreter truncates), float16 eleven, float32 twenty-four.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 2e-6}
NAMES = ("out", "hidden", "gate_up", "down", "weights")


def surrounded(values: Tensor) -> Tensor:
    """The same values with NaN directly before and behind them."""
    around = torch.full((values.numel() + 64,), float("nan"), dtype=values.dtype, device=values.device)
    inner = around[32 : 32 + values.numel()].view(values.shape)
    return inner.copy_(values)


@dataclass(frozen=True, slots=True)
class Layer:
    """What a kernel is called with."""

    hidden: Tensor
    gate_up: Tensor
    down: Tensor
    ids: Tensor
    weights: Tensor

    @classmethod
    def random(
        cls, device: torch.device, num_tokens: int, width: int, experts: int, top_k: int, num_ff: int,
        dtype: torch.dtype = torch.float32, *, seed: int = 0,
    ) -> Layer:  # fmt: skip
        chance = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return surrounded((torch.randn(*shape, generator=chance) * scale).to(dtype).to(device))

        ids = torch.rand(num_tokens, experts, generator=chance).argsort(-1)[:, :top_k].contiguous()
        weights = surrounded(torch.rand(num_tokens, top_k, generator=chance).to(device))
        gate_up = normal(experts, 2 * num_ff, width, scale=width**-0.5)
        return cls(normal(num_tokens, width), gate_up, normal(experts, width, num_ff, scale=num_ff**-0.5), ids.to(device), weights)  # fmt: skip

    def forward(self) -> Tensor:
        with torch.no_grad():
            return swiglu_experts_triton(self.hidden, self.gate_up, self.down, self.ids, self.weights)

    def forward64(self) -> Tensor:
        wide = (self.hidden.double(), self.gate_up.double(), self.down.double())
        return swiglu_experts_torch(*wide, self.ids, self.weights.double())

    def results(self) -> tuple[Tensor, ...]:
        """Output and the gradients of hidden, gate_up, down and weights."""
        return _results(swiglu_experts_triton, self, lambda x: x.detach().clone())

    def results64(self) -> tuple[Tensor, ...]:
        return _results(swiglu_experts_torch, self, lambda x: x.detach().double())


def _results(function, layer: Layer, prepare) -> tuple[Tensor, ...]:
    leaves = [prepare(x).requires_grad_() for x in (layer.hidden, layer.gate_up, layer.down, layer.weights)]
    out = function(*leaves[:3], layer.ids, leaves[3])
    # Any direction will do, as long as it is the same one.
    steps = torch.arange(out.numel(), device=out.device).view(out.shape)
    out.backward(torch.sin(steps.double()).to(out.dtype))
    return (out.detach(), *(leaf.grad for leaf in leaves))


def error(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖; NaN where anything is NaN."""
    size = truth.double().norm()
    difference = (found.double() - truth.double()).norm()
    return float(difference if size == 0 else difference / size)


def assert_results_agree(layer: Layer) -> None:
    for name, found, truth in zip(NAMES, layer.results(), layer.results64(), strict=True):
        assert error(found, truth) < TOLERANCE[layer.hidden.dtype], (name, error(found, truth))
