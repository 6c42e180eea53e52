"""AdamW and the norm of a gradient, compiled, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.kernels.cpu import optimising
from moe_core.kernels.cpu.build import X86_SETS
from moe_core.kernels.cpu.native import Library

pytestmark = pytest.mark.parametrize(
    "kernels", [(isa, 3) for isa in X86_SETS], indirect=True, ids=list(X86_SETS)
)
BETAS, RATE, DECAY = (0.9, 0.95), 0.01, 0.1
# Below a row, a row of each width of registers with a rest, and more than one stretch.
SIZES = [1, 15, 67, 16384, 3 * 16384 + 77]


def random(num: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed)).to(dtype)


def five(num: int = 32, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What `adamw` takes; weights and gradients in `dtype`."""
    return [random(num, 0, dtype), random(num, 1, dtype), random(num, 0), torch.zeros(num), torch.zeros(num)]


@pytest.fixture(autouse=True)
def set_in_use(kernels: Library) -> Library:
    return kernels


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("betas", [BETAS, (0.9, 0.999)])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_steps_are_those_of_float64(
    num: int, dtype: torch.dtype, gradient_dtype: torch.dtype, betas: tuple[float, float]
) -> None:
    working, master = random(num, 0, dtype), random(num, 0)
    average, square = torch.zeros(num), torch.zeros(num)
    exact = master.double().requires_grad_()
    reference = torch.optim.AdamW([exact], lr=RATE, betas=betas, weight_decay=DECAY)
    for step in (1, 2, 3):
        gradient = random(num, step, gradient_dtype)
        whole = (working, gradient, master, average, square)
        optimising.adamw(
            whole, step=step, scale=0.5, learning_rate=RATE, betas=betas, weight_decay=DECAY
        )
        exact.grad = 0.5 * gradient.double()
        reference.step()
    torch.testing.assert_close(master.double(), exact.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(working, master.to(dtype))
    kept = reference.state[exact]
    torch.testing.assert_close(average.double(), kept["exp_avg"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(square.double(), kept["exp_avg_sq"], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_float64(num: int, dtype: torch.dtype) -> None:
    gradient = random(num, 1, dtype)
    assert optimising.norm(gradient) == pytest.approx(float(gradient.double().norm()), rel=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 70, 16384 + 5])
def test_what_is_not_finite_shows_in_the_norm(poison: float, place: int) -> None:
    gradient = random(2 * 16384, 1)
    gradient[place] = poison
    assert not torch.tensor(optimising.norm(gradient)).isfinite()


def test_threads_change_no_bit(kernels: Library) -> None:
    found = []
    for threads in (1, 3):
        kernels.set_threads(threads)
        parts = [random(5 * 16384 + 3, seed) for seed in range(4)]
        working, square = torch.empty_like(parts[0]), parts[3].abs()
        optimising.adamw(
            (working, *parts[:3], square), step=7, scale=1.0, learning_rate=RATE, betas=BETAS, weight_decay=DECAY
        )
        found.append((working, *parts, optimising.norm(parts[0])))
    for one, three in zip(*found, strict=True):
        assert one == three if isinstance(one, float) else torch.equal(one, three)


def test_the_order_of_stretches_changes_no_bit_of_the_norm() -> None:
    stretches = random(64 * optimising.UNIT, 3).view(64, -1) * torch.logspace(-3, 3, 64)[:, None]
    wanted = optimising.norm(stretches)
    generator = torch.Generator().manual_seed(4)
    for _ in range(8):
        assert optimising.norm(stretches[torch.randperm(64, generator=generator)]) == wanted


def test_a_graph_that_kept_what_was_written_finds_out() -> None:
    whole = five()
    whole[0].requires_grad_()
    before = [part._version for part in whole]
    with torch.enable_grad():
        out = whole[0].square().sum()
    optimising.adamw(whole, step=1, scale=1.0, learning_rate=RATE, betas=BETAS, weight_decay=DECAY)
    written = [part._version > version for part, version in zip(whole, before, strict=True)]
    assert written == [True, False, True, True, True]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_masters_and_moments_are_float32_and_all_lie_alike_on_the_processor() -> None:
    assert optimising.supports(*five())
    assert optimising.supports(*five(dtype=torch.bfloat16))
    assert optimising.supports(five(dtype=torch.bfloat16)[1])
    for place in range(5):
        wrong = (torch.float64, torch.bfloat16) if place > 1 else (torch.float64, torch.float16)
        others = [lambda x, dtype=dtype: x.to(dtype) for dtype in wrong]
        for other in (*others, lambda x: x.to("meta"), lambda x: x[:16], lambda x: x.repeat(2)[::2]):
            whole = five()
            whole[place] = other(whole[place])
            assert not optimising.supports(*whole)


def test_what_it_does_not_take_loads_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimising, "library", lambda: pytest.fail("the library was asked for"))
    assert not optimising.supports(torch.zeros(3).double())
    assert not optimising.supports(torch.zeros(3, device="meta"))


def test_the_default_device_changes_nothing() -> None:
    gradient = random(100, 1)
    wanted = optimising.norm(gradient)
    torch.set_default_device("meta")
    try:
        assert optimising.norm(gradient) == wanted
    finally:
        torch.set_default_device(None)
