"""The expert kernel against float64 at small and odd sizes, threads, company, and the dispatcher; see `test_nine_cases` too."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels import dispatch
from moe_core.kernels.cpu import experts
from moe_core.kernels.cpu.experts import supports, swiglu_experts_cpu
from moe_core.kernels.cpu.panels import bfloat16_panels
from tests.moe_core.kernels.cpu.conftest import poisoned


def truth(x_TD, gate_up_E2FD, down_EDF, ids_TK, weights_TK) -> torch.Tensor:
    """The formula in float64, with the activation rounded to bfloat16 as the kernel keeps it."""
    out = torch.zeros(x_TD.shape, dtype=torch.float64)
    num_ff = down_EDF.shape[2]
    for t in range(x_TD.shape[0]):
        for expert, weight in zip(ids_TK[t].tolist(), weights_TK[t].tolist(), strict=True):
            both = gate_up_E2FD[expert].double() @ x_TD[t].double()
            act = torch.nn.functional.silu(both[:num_ff]) * both[num_ff:]
            out[t] += weight * (down_EDF[expert].double() @ act.bfloat16().double())
    return out


def layer(num_experts: int, width: int, num_ff: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        poisoned(num_experts, 2 * num_ff, width, seed=1, scale=width**-0.5),
        poisoned(num_experts, width, num_ff, seed=2, scale=num_ff**-0.5),
    )


def choices(
    num_tokens: int, num_experts: int, top_k: int, seed: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    values, ids = torch.softmax(scores, -1).topk(top_k)
    return ids, values


@pytest.mark.parametrize(("num_experts", "width", "num_ff"), [(1, 8, 8), (4, 33, 17), (8, 64, 96), (5, 7, 1)])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 16, 23])
def test_it_equals_float64_up_to_rounding(kernels, num_tokens, num_experts, width, num_ff) -> None:
    top_k = min(2, num_experts)
    x_TD, weights = poisoned(num_tokens, width), layer(num_experts, width, num_ff)
    ids_TK, weights_TK = choices(num_tokens, num_experts, top_k)
    found = swiglu_experts_cpu(x_TD, *weights, ids_TK, weights_TK)
    # The activation may round the other way where float32 and float64 differ: half a unit in 2**-8 of each term.
    wanted = truth(x_TD, *weights, ids_TK, weights_TK)
    assert not found.isnan().any()
    assert (found.double() - wanted).abs().max() <= 0.01 * wanted.abs().max() + 1e-6


def test_the_threads_do_not_change_a_bit(kernels) -> None:
    x_TD, weights = poisoned(7, 128), layer(8, 128, 160)
    ids_TK, weights_TK = choices(7, 8, 2)
    shared = swiglu_experts_cpu(x_TD, *weights, ids_TK, weights_TK)
    kernels.set_threads(1)
    assert torch.equal(shared, swiglu_experts_cpu(x_TD, *weights, ids_TK, weights_TK))


def test_a_token_does_not_depend_on_its_company(kernels) -> None:
    x_TD, weights = poisoned(11, 64), layer(4, 64, 48)
    ids_TK, weights_TK = choices(11, 4, 2)
    # The sum over a token's experts goes by expert number, whoever else is there.
    together = swiglu_experts_cpu(x_TD, *weights, ids_TK, weights_TK)
    rows = [slice(row, row + 1) for row in range(11)]
    alone = [swiglu_experts_cpu(x_TD[row], *weights, ids_TK[row], weights_TK[row]) for row in rows]
    assert torch.equal(together, torch.cat(alone))


def test_large_gates_saturate_and_do_not_overflow(kernels) -> None:
    x_TD = torch.tensor([[200.0], [-200.0]], dtype=torch.bfloat16)
    gate_up = torch.ones(1, 2, 1, dtype=torch.bfloat16)
    down = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    found = swiglu_experts_cpu(x_TD, gate_up, down, torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    assert found.flatten().tolist() == pytest.approx([40_000.0, 0.0], rel=0.01, abs=1e-6)


@pytest.mark.parametrize("bad", [-2, 4])
def test_an_expert_that_is_not_there_is_refused(kernels, bad: int) -> None:
    ids_TK = torch.tensor([[0, 1], [2, bad]])
    with pytest.raises(SpecError, match="outside the layer's 4 experts"):
        swiglu_experts_cpu(poisoned(2, 8), *layer(4, 8, 8), ids_TK, torch.ones(2, 2))


def test_the_dispatcher_takes_it_where_it_applies_and_torch_elsewhere(kernels, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", list(dispatch._KERNELS))
    assert experts.register()
    assert dispatch.kernel_names()[0] == experts.NAME
    x_TD, weights = poisoned(3, 24), layer(4, 24, 16)
    ids_TK, weights_TK = choices(3, 4, 2)
    found = dispatch.swiglu_experts(x_TD, *weights, ids_TK, weights_TK)
    assert torch.equal(found, swiglu_experts_cpu(x_TD, *weights, ids_TK, weights_TK))
    wide = [tensor.float() for tensor in (x_TD, *weights)]
    assert not supports(*wide, ids_TK)
    by_torch = dispatch.swiglu_experts(*wide, ids_TK, weights_TK, kernel="torch")
    assert torch.equal(dispatch.swiglu_experts(*wide, ids_TK, weights_TK), by_torch)


@pytest.mark.parametrize("gate", [-100.0, -1e30, -3e38])
def test_nothing_is_left_of_a_gate_far_down(kernels, gate: float) -> None:
    """As in torch: the last gates are of the size of what silu would be divided by."""
    gate_up_E2FD = torch.tensor([gate, 4.0]).bfloat16().view(1, 2, 1).repeat_interleave(3, 1)
    down_EDF, ids_TK, ones = torch.ones(1, 1, 3).bfloat16(), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    assert not swiglu_experts_cpu(ones.bfloat16(), gate_up_E2FD, down_EDF, ids_TK, ones).any()
    assert not bfloat16_panels(gate_up_E2FD, down_EDF).run(ones.bfloat16(), ids_TK, ones).any()
