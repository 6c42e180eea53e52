"""Neurons that were levelled and sorted: the same function, less lost in 8 bits."""

from __future__ import annotations

import pytest
import torch

from moe_core.experts import GroupedExperts
from moe_core.kernels.gating import Gating
from moe_core.operations.level import level
from moe_core.routers import Routing

E, D, F, T = 3, 24, 40, 17


def uneven(gating: Gating, *, bias: bool, dtype: torch.dtype = torch.float32) -> GroupedExperts:
    """Experts some of whose neurons are a hundred times as large as others, the large ones anywhere."""
    chance = torch.Generator().manual_seed(3)
    experts = GroupedExperts(E, D, F, dtype, gating=gating, bias=bias)
    with torch.no_grad():
        for tensor in experts.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=chance) * 0.2)
        experts.gate_up_E2FD[:, F:] *= torch.exp(torch.randn(E, F, 1, generator=chance) * 1.5)
    return experts


def choices() -> Routing:
    chance = torch.Generator().manual_seed(4)
    ids_TK = torch.stack([torch.randperm(E, generator=chance)[:2] for _ in range(T)])
    return Routing(ids_TK, torch.rand(T, 2, generator=chance), torch.zeros(T, E), torch.zeros(T, E))


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "gating", [Gating("silu"), Gating("gelu"), Gating("clamped", alpha=1.3, limit=0.7), Gating("clamped_silu", limit=0.4)],
    ids=lambda gating: gating.kind,
)  # fmt: skip
def test_the_function_stays(gating: Gating, bias: bool) -> None:
    experts = uneven(gating, bias=bias)
    x_TD = torch.randn(T, D, generator=torch.Generator().manual_seed(5))
    before = experts(x_TD, choices())
    level(experts)
    assert torch.allclose(experts(x_TD, choices()), before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def hidden_sizes(experts: GroupedExperts) -> torch.Tensor:
    """How large each neuron of each expert becomes, (E, F)."""
    x_TD = torch.randn(400, D, generator=torch.Generator().manual_seed(6))
    gate, up = torch.einsum("td,ehd->eth", x_TD, experts.gate_up_E2FD).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).square().mean(1).sqrt()


def test_neurons_are_more_alike_and_in_order() -> None:
    experts = uneven(Gating("silu"), bias=False)
    before = hidden_sizes(experts)
    level(experts)
    after = hidden_sizes(experts)
    spread = [float(sizes.log().std()) for sizes in (before, after)]
    assert spread[1] < 0.7 * spread[0]
    # Large ones last: of estimates by weights alone, so roughly.
    assert bool((after[:, -8:].mean(1) > 2 * after[:, :8].mean(1)).all())


def test_powers_of_two_lose_no_bit() -> None:
    experts = uneven(Gating("silu"), bias=False, dtype=torch.bfloat16)
    before = experts.down_EDF.detach().clone()
    level(experts)
    mantissas = [torch.frexp(weights.float().abs())[0].sort(-1)[0] for weights in (before, experts.down_EDF)]
    assert torch.equal(*mantissas)


def test_neurons_without_weights_are_left_alone() -> None:
    experts = uneven(Gating("silu"), bias=False)
    with torch.no_grad():
        experts.gate_up_E2FD[0, :4] = 0.0
        experts.down_EDF[1] = 0.0
    level(experts)
    assert all(bool(tensor.isfinite().all()) for tensor in experts.parameters())
