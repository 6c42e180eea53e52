"""Every expert kernel against the loop, forward and every gradient, in the cases where grouping breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts
from moe_core.kernels import dispatch
from moe_core.kernels.reference import swiglu_experts_reference
from moe_core.kernels.torch_grouped import group_rows
from moe_core.routers import route

WIDTH, INNER = 12, 7

# What each token chooses; experts beyond those named stay empty.
CASES: dict[str, tuple[int, Callable[[], Tensor]]] = {
    "ties": (4, lambda: torch.tensor([[0, 1], [1, 0], [0, 1]])),
    "no tokens": (4, lambda: torch.empty(0, 2, dtype=torch.long)),
    "one token": (4, lambda: torch.tensor([[3, 1]])),
    "one expert": (1, lambda: torch.zeros(5, 1, dtype=torch.long)),
    "k equals E": (3, lambda: torch.tensor([[0, 1, 2], [2, 1, 0]])),
    "all to one": (4, lambda: torch.full((9, 1), 2)),
    "one empty": (3, lambda: torch.tensor([[0], [2], [0], [2]])),
    "odd rows": (5, lambda: torch.stack([torch.randperm(5)[:3] for _ in range(11)])),
    "many tokens": (8, lambda: torch.stack([torch.randperm(8)[:2] for _ in range(257)])),
}


def tensors(case: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(len(case))
    num_experts, choose = CASES[case]
    ids_TK = choose()
    num_tokens, top_k = ids_TK.shape
    parts = (
        torch.randn(num_tokens, WIDTH), torch.randn(num_experts, 2 * INNER, WIDTH),
        torch.randn(num_experts, WIDTH, INNER), torch.rand(num_tokens, top_k),
    )  # fmt: skip
    x, gate_up, down, weights = (part.to(dtype).requires_grad_() for part in parts)
    return x, gate_up, down, ids_TK, weights


@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_loop_forward_and_backward(case: str) -> None:
    x, gate_up, down, ids_TK, weights = tensors(case)
    torch.manual_seed(99)
    direction_TD = torch.randn(x.shape, dtype=x.dtype)
    fast = dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights, kernel="torch")
    slow = swiglu_experts_reference(x, gate_up, down, ids_TK, weights)
    assert fast.shape == x.shape
    # The reference adds up in float32.
    assert torch.allclose(fast, slow, rtol=1e-5, atol=1e-6)
    leaves = (x, gate_up, down, weights)
    fast_grads = torch.autograd.grad(fast, leaves, direction_TD)
    if x.shape[0] == 0:
        assert all(not grad.any() for grad in fast_grads)
        return
    slow_grads = torch.autograd.grad(slow, leaves, direction_TD)
    for fast_grad, slow_grad in zip(fast_grads, slow_grads, strict=True):
        assert torch.allclose(fast_grad, slow_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["odd rows", "one empty", "k equals E"])
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    x, gate_up, down, ids_TK, weights = tensors(case)

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


def test_an_expert_without_rows_has_a_zero_gradient() -> None:
    x, gate_up, down, ids_TK, weights = tensors("one empty")
    dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights).sum().backward()
    assert gate_up.grad is not None
    assert down.grad is not None
    assert not gate_up.grad[1].any()
    assert not down.grad[1].any()
    assert gate_up.grad[0].any()


@pytest.mark.parametrize("num_tokens", [1, 16, 65])
def test_sixteen_bit_results_are_near_the_float32_ones(num_tokens: int) -> None:
    torch.manual_seed(num_tokens)
    x, gate_up, down = torch.randn(num_tokens, 64), torch.randn(4, 64, 64) / 8, torch.randn(4, 64, 32) / 6
    ids_TK = torch.stack([torch.randperm(4)[:2] for _ in range(num_tokens)])
    weights = torch.full((num_tokens, 2), 0.5)
    half = dispatch.swiglu_experts(
        x.bfloat16(), gate_up.bfloat16(), down.bfloat16(), ids_TK, weights, kernel="torch"
    )
    full = swiglu_experts_reference(
        x.bfloat16().float(), gate_up.bfloat16().float(), down.bfloat16().float(), ids_TK, weights
    )
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 1e-2


def test_a_nan_stays_in_its_own_token() -> None:
    x, gate_up, down, ids_TK, weights = (part.detach() for part in tensors("odd rows"))
    clean = dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights)
    x[4] = float("nan")
    dirty = dispatch.swiglu_experts(x, gate_up, down, ids_TK, weights)
    others = [row for row in range(len(x)) if row != 4]
    assert dirty[4].isnan().all()
    assert torch.equal(dirty[others], clean[others])


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
    x, gate_up, down, ids_TK, weights = (part.detach() for part in tensors("many tokens"))
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
