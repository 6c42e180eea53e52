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


@pytest.fixture(autouse=True)
def set_in_use(kernels: Library) -> Library:
    return kernels


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_steps_are_those_of_float64(num: int, dtype: torch.dtype, gradient_dtype: torch.dtype) -> None:
    working, master = random(num, 0, dtype), random(num, 0)
    average, square = torch.zeros(num), torch.zeros(num)
    exact = master.double().requires_grad_()
    reference = torch.optim.AdamW([exact], lr=RATE, betas=BETAS, weight_decay=DECAY)
    for step in (1, 2, 3):
        gradient = random(num, step, gradient_dtype)
        whole = (working, gradient, master, average, square)
        optimising.adamw(
            whole, step=step, scale=0.5, learning_rate=RATE, betas=BETAS, weight_decay=DECAY
        )
        exact.grad = 0.5 * gradient.double()
        reference.step()
    torch.testing.assert_close(master.double(), exact.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(working, master.to(dtype))


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
