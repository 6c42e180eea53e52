"""Gradients of causal attention in tiles, against autograd in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moe_core.kernels.cpu import causal
from moe_core.kernels.cpu.native import Library

# Shares, gradients of scores and what comes out are rounded to bfloat16 each.
TOLERANCE = 2.0**-6


@pytest.fixture(autouse=True)
def recorded(tiles: Library) -> Iterator[None]:
    with torch.enable_grad():
        yield


@pytest.fixture
def tiles(compiled: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library with tiles in use, asked for by the module; set and threads are as before afterwards."""
    isa, num_threads = compiled.isa, compiled.num_threads
    if not compiled.use_isa("amx"):
        pytest.skip("this processor has no tiles")
    try:
        if not compiled.tiles_work():
            pytest.skip("tiles do not work on this machine")
        compiled.set_threads(1)
        monkeypatch.setattr(causal, "library", lambda: compiled)
        yield compiled
    finally:
        compiled.use_isa(isa)
        compiled.set_threads(num_threads)


def inputs(batch: int, heads: int, groups: int, sequence: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sequence + width)
    shapes = [(batch, n, sequence, width) for n in (heads, groups, groups, heads)]
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


def gradients(whole: list[Tensor], scale: float | None = None) -> list[Tensor]:
    q, k, v = (x.clone().requires_grad_() for x in whole[:3])
    assert causal.supports(q, k, v)
    return list(torch.autograd.grad(causal.attend(q, k, v, scale), (q, k, v), whole[3]))


def exact_gradients(whole: list[Tensor], scale: float | None = None) -> list[Tensor]:
    q, k, v = (x.double().requires_grad_() for x in whole[:3])
    is_grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=is_grouped)
    return list(torch.autograd.grad(out, (q, k, v), whole[3].double()))


@pytest.mark.parametrize("scale", [None, 0.02, 3.0])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "sequence", "width"),
    [(1, 1, 1, 32, 32), (2, 4, 2, 96, 64), (1, 3, 1, 128, 32), (2, 2, 2, 160, 96), (1, 9, 3, 416, 64)],
)
def test_gradients_are_those_of_float64(
    batch: int, heads: int, groups: int, sequence: int, width: int, scale: float | None
) -> None:
    whole = inputs(batch, heads, groups, sequence, width)
    for found, wanted in zip(gradients(whole, scale), exact_gradients(whole, scale), strict=True):
        largest = float(wanted.abs().max())
        torch.testing.assert_close(found.double(), wanted, rtol=TOLERANCE, atol=TOLERANCE * largest)
        assert float((found.double() - wanted).norm() / wanted.norm()) < 2.0**-7


def test_parts_of_wider_rows_have_the_same_gradients() -> None:
    whole = inputs(2, 4, 2, 64, 32)
    apart = [torch.cat([x, x], dim=-1)[..., :32] for x in whole]
    assert not apart[0].is_contiguous()
    for one, two in zip(gradients(whole), gradients(apart), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_what_is_not_finite_shows_and_spoils_no_other_sequence(which: int) -> None:
    whole = inputs(2, 2, 1, 64, 32)
    clean = gradients(whole)
    whole[which][0, 0, 40, 3] = float("nan")
    found = gradients(whole)
    assert any(x[0].isnan().any() for x in found)
    for one, two in zip(clean, found, strict=True):
        assert torch.equal(one[1], two[1])


def test_neither_threads_nor_company_change_a_bit(tiles: Library) -> None:
    whole = inputs(3, 4, 2, 96, 32)
    together = gradients(whole)
    tiles.set_threads(3)
    for one, two in zip(together, gradients(whole), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(together, gradients([x[1:2] for x in whole]), strict=True):
        assert torch.equal(one[1:2], two)


def test_it_is_for_recorded_gradients_of_whole_tiles_only() -> None:
    q, k, v, _ = inputs(1, 2, 1, 64, 32)
    assert not causal.supports(q, k, v)
    assert causal.supports(q.requires_grad_(), k, v)
    assert not causal.supports(q[:, :, :33], k[:, :, :33], v[:, :, :33])
    assert not causal.supports(q.float(), k, v)
    assert torch.equal(
        causal.attend(q, k, v, None), scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    )


def test_a_scale_below_0_shows_no_key_behind_a_query() -> None:
    # What torch makes forward of such a scale is not looked at: it hides keys before it scales.
    whole = inputs(1, 2, 1, 96, 32)
    q, k, v, grad = (x.double().requires_grad_() for x in whole)
    behind = torch.ones(96, 96, dtype=torch.bool).triu(1)
    shares = (q @ k.mT * -0.3).masked_fill(behind, float("-inf")).softmax(-1)
    exact = torch.autograd.grad(shares @ v, (q, k, v), grad)
    for found, wanted in zip(gradients(whole, -0.3), exact, strict=True):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 2.0**-7


def test_what_it_does_not_take_loads_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "library", lambda: pytest.fail("the library was asked for"))
    q, k, v, _ = inputs(1, 2, 1, 64, 32)
    assert not causal.supports(q, k, v)
    q.requires_grad_()
    assert not causal.supports(q.float(), k, v)
    assert not causal.supports(*(x.to("meta") for x in (q, k, v)))
    with torch.no_grad():
        assert not causal.supports(q, k, v)
