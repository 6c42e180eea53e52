"""Experts of one shape in torch: how rows are grouped, and what learns, layer and dispatcher. What they compute: `test_nine_cases`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts
from moe_core.kernels import dispatch
from moe_core.kernels.reference import swiglu_experts_reference
from moe_core.kernels.torch_grouped import group_rows
from moe_core.routers import route
from tests.moe_core.experts.nine_cases import CASES

WIDTH, INNER = 12, 7


def tensors(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, ids_TK, weights = CASES[case].inputs(WIDTH, torch.float64)
    chance, num_experts = torch.Generator().manual_seed(len(case)), CASES[case].num_experts
    shapes = ((num_experts, 2 * INNER, WIDTH), (num_experts, WIDTH, INNER))
    gate_up, down = (torch.randn(shape, generator=chance).double().requires_grad_() for shape in shapes)
    return x.requires_grad_(), gate_up, down, ids_TK, weights.requires_grad_()


def test_gradients_are_those_of_finite_differences() -> None:
    x, gate_up, down, ids_TK, weights = tensors("ties")

    def run(*parts: Tensor) -> Tensor:
        return dispatch.swiglu_experts(*parts[:3], ids_TK, parts[3], kernel="torch")

    assert torch.autograd.gradcheck(run, (x, gate_up, down, weights))


@pytest.mark.parametrize("frozen", range(4))
def test_a_frozen_part_gets_no_gradient_and_the_others_keep_theirs(frozen: int) -> None:
    x, gate_up, down, ids_TK, weights = tensors("odd rows")
    leaves = [x, gate_up, down, weights]
    full = torch.autograd.grad(dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights).sum(), leaves)
    leaves[frozen].requires_grad_(False)
    dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights).sum().backward()
    for place, (leaf, grad) in enumerate(zip(leaves, full, strict=True)):
        assert (leaf.grad is None) == (place == frozen)
        assert leaf.grad is None or torch.allclose(leaf.grad, grad)


def test_the_comparison_notices_two_swapped_experts() -> None:
    x, gate_up, down, ids_TK, weights = (part.detach() for part in tensors("odd rows"))
    swapped = [1, 0, 2, 3, 4]
    wrong = dispatch.swiglu_experts(x, gate_up[swapped], down, ids_TK, weights)
    assert not torch.allclose(wrong, swiglu_experts_reference(x, gate_up, down, ids_TK, weights), rtol=0.1)


def test_rows_are_grouped_by_expert_and_none_is_lost() -> None:
    ids_TK = torch.tensor([[2, 0], [0, 1], [2, 1]])
    rows = group_rows(ids_TK, 4)
    assert rows.parts == [(0, slice(0, 2)), (1, slice(2, 4)), (2, slice(4, 6))]
    assert rows.token_R.tolist() == [0, 1, 1, 2, 0, 2]
    assert sorted(rows.choice_R.tolist()) == list(range(6))
    assert ids_TK.reshape(-1)[rows.choice_R].tolist() == [0, 0, 1, 1, 2, 2]


def test_results_do_not_depend_on_the_rest_of_the_batch_order() -> None:
    x, gate_up, down, ids_TK, weights = (part.detach() for part in tensors("odd rows"))
    order = torch.randperm(len(x))
    straight = dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights)
    shuffled = dispatch.swiglu_experts(x[order], gate_up, down, ids_TK[order], weights[order])
    assert torch.allclose(straight[order], shuffled)


def test_the_layer_runs_what_its_router_chose() -> None:
    torch.manual_seed(3)
    layer = GroupedExperts(4, WIDTH, INNER)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    hidden_TD = torch.randn(6, WIDTH)
    routing = route(hidden_TD, torch.randn(4, WIDTH), top_k=2)
    expected = swiglu_experts_reference(
        hidden_TD, layer.gate_up_E2FD, layer.down_EDF, routing.expert_ids_TK, routing.weights_TK
    )
    assert torch.allclose(layer(hidden_TD, routing), expected, rtol=1e-4, atol=1e-4)


def test_it_names_shapes_that_do_not_fit() -> None:
    x, gate_up, down, ids_TK, weights = tensors("ties")
    with pytest.raises(SpecError, match=r"do not fit together"):
        dispatch.swiglu_experts(x[:, :-1], gate_up, down, ids_TK, weights)


def test_an_unknown_kernel_is_named_with_those_that_exist() -> None:
    with pytest.raises(SpecError, match="no expert kernel is named 'warp'; there are: .*torch"):
        dispatch.swiglu_experts(*tensors("ties"), kernel="warp")


@pytest.mark.parametrize("num_tokens", [1, 32, 33, 200])
@pytest.mark.parametrize("wrong", [4, 5, 1000])
def test_an_expert_that_is_not_there_is_named_whatever_the_number_of_rows(
    num_tokens: int, wrong: int
) -> None:
    ids_TK = torch.tensor([[0, -1]]).repeat(num_tokens, 1)
    assert group_rows(ids_TK, 4).choice_R.tolist() == list(range(0, 2 * num_tokens, 2))
    ids_TK[-1, 1] = wrong
    with pytest.raises(SpecError, match=f"expert {wrong}; there are 4"):
        group_rows(ids_TK, 4)
