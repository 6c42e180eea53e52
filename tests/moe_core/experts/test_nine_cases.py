"""Every way of running experts in torch in the nine cases: ties, NaN, no token, one expert, all experts chosen, all tokens to
one, an expert that nobody chooses, a number of rows that no block divides, very many tokens; and places that are empty."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.moe_core.experts.nine_cases import CASES, assert_same, dense, loop
from tests.moe_core.experts.ways import LEARNING, WAYS, Layer, spoil

# The readable reference is a loop itself.
PAIRS = [(case, way) for case in CASES for way in WAYS if (case, way) != ("huge", "the readable reference")]
layer_of = cache(lambda way, num_experts: WAYS[way](num_experts))


def inputs(way: str, case: str) -> tuple[Layer, Tensor, Tensor, Tensor]:
    layer = layer_of(way, CASES[case].num_experts)
    return layer, *CASES[case].inputs(layer.width, layer.dtype)


@pytest.mark.parametrize(("case", "way"), PAIRS)
@torch.no_grad()
def test_it_equals_the_loop(case: str, way: str) -> None:
    layer, x_TD, ids_TK, weights_TK = inputs(way, case)
    found_TD = layer.run(x_TD, ids_TK, weights_TK)
    assert found_TD.dtype == layer.dtype
    if case == "huge":
        wanted_TD = dense(x_TD.double(), ids_TK, weights_TK.double(), layer.one)
    else:
        wanted_TD = layer.reference(x_TD, ids_TK, weights_TK)
    assert_same(found_TD, wanted_TD, layer.tolerance)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_nan_stays_in_its_token(way: str) -> None:
    """The loop is as good a judge of it as any: here it is said of what is found, whatever the loop gives."""
    layer, x_TD, ids_TK, weights_TK = inputs(way, "NaN")
    sick = {*CASES["NaN"].sick, *CASES["NaN"].sick_weights}
    sound = [token for token in range(len(x_TD)) if token not in sick]
    found_TD = layer.run(x_TD, ids_TK, weights_TK)
    assert found_TD[sound].isfinite().all()
    # Healed, the same tokens change and no other does, by no bit.
    healed_TD = layer.run(x_TD.nan_to_num(), ids_TK, weights_TK.nan_to_num())
    assert torch.equal(found_TD[sound], healed_TD[sound])
    assert healed_TD.isfinite().all()
    assert found_TD[list(sick)].isnan().any(-1).sum() >= 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["all to one", "one empty"])
@torch.no_grad()
def test_an_expert_without_tokens_is_never_read(case: str, way: str) -> None:
    layer = WAYS[way](CASES[case].num_experts)
    call = CASES[case].inputs(layer.width, layer.dtype)
    before_TD = layer.run(*call)
    spoil(layer, set(range(CASES[case].num_experts)) - set(call[1].flatten().tolist()))
    assert torch.equal(layer.run(*call), before_TD)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("huge", "no token")])
@torch.no_grad()
def test_the_formula_that_stands_for_the_loop_equals_it(case: str, way: str) -> None:
    layer, x_TD, ids_TK, weights_TK = inputs(way, case)
    x_TD, weights_TK = x_TD.double(), weights_TK.double()
    wanted_TD = layer.reference(x_TD, ids_TK, weights_TK)
    assert_same(loop(x_TD, ids_TK, weights_TK, layer.one), wanted_TD, 1e-9)
    if case != "NaN":
        assert_same(dense(x_TD, ids_TK, weights_TK, layer.one), wanted_TD, 1e-9)


@pytest.mark.parametrize("way", LEARNING)
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_that_of_the_loop(case: str, way: str) -> None:
    layer, x_TD, ids_TK, weights_TK = inputs(way, case)
    leaves = (x_TD.requires_grad_(), weights_TK.requires_grad_(), *layer.leaves)
    truth = dense if case == "huge" else loop
    outs = (layer.run(x_TD, ids_TK, weights_TK), truth(x_TD, ids_TK, weights_TK, layer.one))
    assert_same(*outs, layer.tolerance)
    direction_TD = torch.randn(x_TD.shape, generator=torch.Generator().manual_seed(2)).double()
    found, wanted = (
        torch.autograd.grad(out, leaves, direction_TD, allow_unused=True, materialize_grads=True)
        if out.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves]
        for out in outs
    )
    for ours, theirs in zip(found, wanted, strict=True):
        rows = ((grad if grad.ndim > 1 else grad[None]) for grad in (ours, theirs))
        assert_same(*rows, 1e-8)
