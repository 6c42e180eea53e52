"""Experts with biases, another gating, or packed weights. What they compute: `test_nine_cases`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from moe_core.experts import PackedExperts
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.experts.test_grouped_experts import INNER, WIDTH, tensors
from tests.moe_core.experts.ways import GATINGS, gating_of


def biases(num_experts: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(num_experts, 2 * INNER, generator=generator).double(),
        torch.randn(num_experts, WIDTH, generator=generator).double(),
    )


@pytest.mark.parametrize("kind", GATINGS)
def test_gradients_of_gated_experts_are_those_of_finite_differences(kind: str) -> None:
    x, gate_up, down, ids_TK, weights = tensors("ties")
    leaves = [*biases(gate_up.shape[0])]
    for leaf in leaves:
        leaf.requires_grad_()

    def run(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, *extra: Tensor) -> Tensor:
        return gated_experts_torch(x, gate_up, down, ids_TK, weights, gating_of(kind), *extra)

    assert torch.autograd.gradcheck(run, (x, gate_up, down, weights, *leaves))


@pytest.mark.parametrize("biased", [False, True])
def test_a_gpu_reads_codes_only_of_experts_without_biases(monkeypatch, biased: bool) -> None:
    pytest.importorskip("triton")
    from moe_core.kernels.triton import packed

    monkeypatch.setattr(packed, "supports", lambda *_: True)
    bias = torch.float32 if biased else None
    experts = PackedExperts(3, 64, 32, ExpertQuantSpec(group_size=32), bias_dtype=bias)
    on_a_gpu = SimpleNamespace(is_cuda=True)
    assert experts._on_codes(on_a_gpu, torch.zeros(1, 1)) is not biased  # type: ignore[arg-type]
