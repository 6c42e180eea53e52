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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_of_a_training_dtype_are_those_of_float64(
    case: str, dtype: torch.dtype, tolerance: float
) -> None:
    x, gate_up, down, ids_TK, weights = tensors(case)
    exact = [x, gate_up, down, weights]
    exact = [part.detach().to(dtype).double().requires_grad_() for part in exact]
    leaves = [part.detach().to(dtype).requires_grad_() for part in exact]
    pull = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = dispatch.swiglu_experts(*leaves[:3], ids_TK, leaves[3], kernel="torch")
    # In float64 nothing is compiled or padded: the path whose gradients the differences above judge.
    wanted = dispatch.swiglu_experts(*exact[:3], ids_TK, exact[3], kernel="torch")
    pairs = [(found, wanted)]
    if found.requires_grad and found.numel():
        ours = torch.autograd.grad(found, leaves, pull)
        pairs += zip(ours, torch.autograd.grad(wanted, exact, pull.double()), strict=True)
    for mine, truth in pairs:
        apart = (mine.double() - truth).detach()
        scale = truth.detach().nan_to_num().norm()
        assert torch.equal(mine.isnan(), truth.isnan())
        assert apart.nan_to_num(posinf=1e9, neginf=-1e9).norm() <= tolerance * scale + 1e-12


def test_padding_is_behind_each_experts_own_rows_and_counts_for_nothing() -> None:
    ids_TK = torch.tensor([[2, 0], [0, -1], [2, 0]])
    rows = group_rows(ids_TK, 4).padded(4)
    assert rows.parts == [(0, slice(0, 4)), (2, slice(4, 8))]
    assert rows.choice_R.tolist() == [1, 2, 5, -1, 0, 4, -1, -1]
    assert rows.token_R.tolist() == [0, 1, 2, 0, 0, 2, 0, 0]
    assert rows.weights_R1(torch.ones(3, 2)).flatten().tolist() == [1, 1, 1, 0, 1, 1, 0, 0]
    assert rows.place_TK(ids_TK.shape).tolist() == [[4, 0], [1, -1], [5, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_is_not_finite_spoils_its_own_experts_only(dtype: torch.dtype) -> None:
    x, gate_up, down, _, weights = (part.detach().to(dtype) for part in tensors("odd rows"))
    num_experts = gate_up.shape[0]
    # The first token, which padding stood for once, is alone with expert 0.
    ids_TK = (torch.arange(x.shape[0])[:, None] % (num_experts - 1) + 1).repeat(1, weights.shape[1])
    ids_TK[0] = 0
    x[0] = float("nan")
    leaves = [part.requires_grad_() for part in (x, gate_up, down, weights)]
    out = dispatch.swiglu_experts(*leaves[:3], ids_TK, leaves[3], kernel="torch")
    d_x, d_gate_up, d_down, d_weights = torch.autograd.grad(out, leaves, torch.ones_like(out))
    for part in (out, d_x, d_gate_up, d_down, d_weights):
        assert not part[0].isfinite().all()
        assert part[1:].isfinite().all()


def test_experts_refuse_to_be_differentiated_again() -> None:
    leaves = [part.detach().requires_grad_() for part in tensors("odd rows") if part.is_floating_point()]
    ids_TK = tensors("odd rows")[3]
    out = dispatch.swiglu_experts(*leaves[:3], ids_TK, leaves[3], kernel="torch")
    (first,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


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
