"""What a training step does beside its products, by the compiled passes, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from moe_core.kernels.cpu import training
from moe_core.kernels.cpu.build import X86_SETS
from moe_core.kernels.cpu.native import Library

# Nothing here multiplies in tiles, and what threads change a test of its own sees.
pytestmark = pytest.mark.parametrize(
    "kernels", [(isa, 3) for isa in X86_SETS], indirect=True, ids=list(X86_SETS)
)
WIDTHS = [1, 15, 16, 33, 255, 256, 257, 576]
# One rounding to bfloat16 of what was computed in float32.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-8}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def recorded(kernels: Library) -> Iterator[None]:
    with torch.enable_grad():
        yield


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """To so much of the largest value of a row or of all: sums cancel."""
    scale = float(wanted.detach().abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale
    )


@DTYPES
@pytest.mark.parametrize("vocabulary", [2, 17, 256, 300, 4099])
@pytest.mark.parametrize("factor", [None, 0.25])
def test_losses_and_errors_of_the_head(dtype: torch.dtype, vocabulary: int, factor: float | None) -> None:
    logits = 5.0 * random(7, vocabulary, dtype=dtype)
    target = torch.arange(7) * 31 % vocabulary
    exact = logits.double().requires_grad_()
    losses = cross_entropy(exact, target, reduction="none")
    (errors,) = torch.autograd.grad(losses.sum(), exact)
    before = logits.clone()
    near(training.head_errors_(logits, target, factor), losses, torch.float32)
    if factor is None:
        assert torch.equal(logits, before)
    else:
        near(logits, factor * errors, dtype)


@pytest.mark.parametrize("target", [-1, 5])
def test_the_head_refuses_a_target_outside_the_vocabulary(target: int) -> None:
    with pytest.raises(IndexError, match="outside the vocabulary of 5"):
        training.head_errors_(torch.zeros(2, 5), torch.tensor([0, target]), None)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2, 17, 299])
def test_a_row_of_logits_that_is_not_finite_loses_as_in_torch_and_spoils_no_other(
    poison: float, place: int
) -> None:
    logits, target = random(3, 300, dtype=torch.float32), torch.tensor([1, 2, 3])
    logits[1, place] = poison
    exact = logits.double().requires_grad_()
    wanted = cross_entropy(exact, target, reduction="none")
    (errors,) = torch.autograd.grad(wanted.sum(), exact)
    torch.testing.assert_close(
        training.head_errors_(logits, target, 1.0).double(), wanted.detach(), equal_nan=True
    )
    torch.testing.assert_close(logits.double(), errors, equal_nan=True)


def test_a_masked_column_has_no_share_and_as_a_target_an_infinite_loss() -> None:
    logits = torch.zeros(2, 40)
    logits[:, 5] = float("-inf")
    losses = training.head_errors_(logits, torch.tensor([0, 5], dtype=torch.int32), 1.0)
    torch.testing.assert_close(losses, torch.tensor([39.0, float("inf")]).log())
    assert float(logits[0, 5]) == pytest.approx(0.0, abs=1e-30)


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_and_its_gradients(dtype: torch.dtype, width: int) -> None:
    rows, nan = 37, float("nan")
    both, d_act = random(rows, 2 * width, dtype=dtype), random(rows, width, dtype=dtype, seed=1)
    weights = torch.rand(rows)
    exact_both, exact_weights = both.double().requires_grad_(), weights.double().requires_grad_()
    gate, up = exact_both.chunk(2, dim=1)
    act = silu(gate) * up
    wanted = torch.autograd.grad(
        (act * exact_weights[:, None] * d_act.double()).sum(), [exact_both, exact_weights]
    )
    near(training.swiglu(both, torch.full_like(d_act, nan)), act, dtype)
    d_both, scaled, d_weights = (
        torch.full_like(both, nan),
        torch.full_like(d_act, nan),
        torch.full((rows,), nan),
    )
    training.swiglu_back(both, d_act, weights, d_weights, d_both, scaled)
    near(d_both, wanted[0], dtype)
    near(d_weights, wanted[1], torch.float32)
    near(scaled, act * exact_weights[:, None], dtype)
    alone = torch.full((rows,), nan)
    training.swiglu_back(both, d_act, weights, alone, None, None)
    assert torch.equal(alone, d_weights)


@DTYPES
def test_swiglu_of_gates_far_out_is_that_of_torch(kernels: Library, dtype: torch.dtype) -> None:
    far = [88.5, 100.0, 1e4, 1e30, 3e38, float("inf")]
    gate = torch.tensor([sign * number for number in (0.0, 1.0, *far) for sign in (1, -1)]).repeat(20)
    both, ones = torch.stack([gate, torch.full_like(gate, 0.5)]).view(1, -1).to(dtype), torch.ones(1, gate.numel(), dtype=dtype)
    exact = both.clone().requires_grad_()
    gates, ups = exact.chunk(2, dim=1)
    wanted = silu(gates) * ups
    found = training.swiglu(both, torch.empty_like(ones))
    torch.testing.assert_close(found, wanted, rtol=2.0**-7, atol=1e-35, equal_nan=True)
    d_both, act, weights = torch.empty_like(both), torch.empty_like(ones), torch.ones(1)
    training.swiglu_back(both, ones, weights, torch.empty(1), d_both, act)
    assert torch.equal(act.nan_to_num(7.0), found.nan_to_num(7.0))
    # Of infinite gates torch's own gradient is NaN.
    finite = both[:, : gate.numel()].isfinite().repeat(1, 2)
    with torch.enable_grad():
        (grad,) = torch.autograd.grad((silu(gates) * ups).sum(), exact)
    torch.testing.assert_close(d_both[finite], grad[finite], rtol=2.0**-6, atol=1e-32)


@DTYPES
@pytest.mark.parametrize("weighed", [True, False])
def test_rows_of_a_token_are_added_up_and_empty_places_left_out(dtype: torch.dtype, weighed: bool) -> None:
    tokens, width = 41, 300
    rows = random(2 * tokens, width, dtype=dtype)
    place = torch.randperm(2 * tokens).view(tokens, 2)
    place[3, 1] = place[7] = -1
    weights = torch.rand(2 * tokens) if weighed else torch.ones(2 * tokens)
    each = rows.double()[place] * (weights.double()[place] * (place >= 0))[..., None]
    near(training.combine(rows, place, weights if weighed else None), each.sum(1), dtype)


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
def test_the_norm_and_its_gradients(dtype: torch.dtype, width: int) -> None:
    x, weight = (
        random(5, 14, width, dtype=dtype).requires_grad_(),
        random(width, dtype=dtype, seed=2).requires_grad_(),
    )
    grad = random(5, 14, width, dtype=dtype, seed=3)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    wanted = torch.nn.functional.rms_norm(exact[0], (width,), exact[1], 1e-2)
    found = training.rms_norm(x, weight, 1e-2)
    near(found, wanted, dtype)
    gradients = zip(
        torch.autograd.grad(found, [x, weight], grad),
        torch.autograd.grad(wanted, exact, grad.double()),
        strict=True,
    )
    for ours, theirs in gradients:
        near(ours, theirs, dtype)


def turned_by_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos.double(), sin.double()
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


@DTYPES
@pytest.mark.parametrize("half", [1, 3, 16, 33])
def test_heads_turn_and_their_gradient_turns_back(dtype: torch.dtype, half: int) -> None:
    tokens, heads = 37, 3
    wide = random(tokens, heads + 2, 2 * half + 5, dtype=dtype).requires_grad_()
    angle = torch.rand(tokens, 1, half)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    grad = random(heads, tokens, 2 * half, dtype=dtype, seed=4).transpose(0, 1)
    exact = wide.detach().double().requires_grad_()
    wanted = turned_by_torch(exact[:, 1 : heads + 1, : 2 * half], cos, sin)
    found = training.turn(wide[:, 1 : heads + 1, : 2 * half], cos, sin)
    near(found, wanted, dtype)
    (ours,) = torch.autograd.grad(found, wide, grad)
    (theirs,) = torch.autograd.grad(wanted, exact, grad.double())
    near(ours, theirs, dtype)


def everything() -> list[Tensor]:
    """What each pass makes of the same tensors."""
    x, weight = random(131, 33, dtype=torch.float32), random(33, dtype=torch.float32).requires_grad_()
    both, d_act = random(131, 66, dtype=torch.float32), random(131, 33, dtype=torch.float32)
    rows, made = x.clone().requires_grad_(), [torch.empty(131), torch.empty(131, 66), torch.empty(131, 33)]
    normed = training.rms_norm(rows, weight, 1e-5)
    training.swiglu_back(both, d_act, torch.rand(131, generator=torch.Generator().manual_seed(5)), *made)
    losses = training.head_errors_(x, torch.arange(131) % 33, 0.5)
    place = torch.arange(131).flip(0).view(131, 1)
    turned = training.turn(
        both.view(131, 3, 22), both[:, None, :11].contiguous(), d_act[:, None, :11].contiguous()
    )
    return [
        normed, *torch.autograd.grad(normed, [rows, weight], d_act), *made, losses, x, turned,
        training.swiglu(both, torch.empty(131, 33)), training.combine(d_act, place, made[0]),
    ]  # fmt: skip


def test_the_number_of_threads_changes_no_bit(kernels: Library) -> None:
    found = []
    for num_threads in (1, 2, 3):
        kernels.set_threads(num_threads)
        found.append(everything())
    for alone, *together in zip(*found, strict=True):
        assert all(torch.equal(alone, shared) for shared in together)


def test_the_default_dtype_of_torch_changes_nothing() -> None:
    before = [part.float() for part in everything()]
    torch.set_default_dtype(torch.bfloat16)
    try:
        x = random(5, 33, dtype=torch.float32).requires_grad_()
        weight = random(33, dtype=torch.float32).requires_grad_()
        normed = training.rms_norm(x, weight, 1e-5)
        d_x, d_weight = torch.autograd.grad(normed.sum(), [x, weight])
        assert {part.dtype for part in (normed, d_x, d_weight)} == {torch.float32}
        assert training.head_errors_(x.detach(), torch.arange(5), None).dtype is torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(before, everything(), strict=True))


def test_norm_and_turn_can_be_differentiated_again() -> None:
    x, weight = random(7, 3, 6, dtype=torch.float32), random(6, dtype=torch.float32, seed=1)
    angle = torch.rand(7, 1, 3)
    cos, sin = angle.cos(), angle.sin()

    def twice(x: Tensor, weight: Tensor, passes: bool) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        turned = training.turn(leaves[0], cos, sin) if passes else turned_by_torch(leaves[0], cos, sin)
        by_torch = torch.nn.functional.rms_norm(turned, (6,), leaves[1], 1e-5)
        normed = training.rms_norm(turned, leaves[1], 1e-5) if passes else by_torch
        first = torch.autograd.grad(normed.square().sum() + normed.sum(), leaves, create_graph=True)
        return *first, *torch.autograd.grad(sum(part.square().sum() for part in first), leaves)

    wanted = twice(x.double(), weight.double(), passes=False)
    for found, exact in zip(twice(x, weight, passes=True), wanted, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_other_dtypes_strides_and_devices_are_left_to_torch() -> None:
    x = torch.zeros(4, 6)
    assert training.supports(x, x.view(-1))
    assert not training.supports(x.double())
    assert not training.supports(x, x.bfloat16())
    assert not training.supports(x.t())
    assert not training.supports(x.to("meta"))
