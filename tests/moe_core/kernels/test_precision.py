"""Products of bfloat16 on a processor without instructions for it: the same answers, never slower by emulation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moe_core.kernels import precision
from moe_core.kernels.reference import swiglu_experts_reference
from moe_core.kernels.torch_grouped import swiglu_experts_torch


@pytest.fixture
def _emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def test_auto_is_bfloat16_only_where_weights_are_stored_so_and_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    assert precision.training_dtype("auto", "bfloat16") == "float32"
    assert precision.training_dtype("bfloat16", "float32") == "bfloat16"
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert precision.training_dtype("auto", "bfloat16") == "bfloat16"
    assert precision.training_dtype("auto", "float32") == "float32"
    assert precision.training_dtype("float32", "bfloat16") == "float32"


@pytest.mark.usefixtures("_emulating")
def test_a_widened_product_is_the_float64_one_rounded_once() -> None:
    x, weight = drawn(33, 65), drawn(17, 65)
    with torch.no_grad():
        got = precision.product(x, weight)
    wanted = x.double() @ weight.double().t()
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=1e-4)


@pytest.mark.usefixtures("_emulating")
def test_nothing_is_widened_while_gradients_are_recorded() -> None:
    x, weight = drawn(3, 8).requires_grad_(), drawn(4, 8)
    assert not precision.widens(x)
    precision.product(x, weight).sum().backward()
    assert x.grad is not None and x.grad.dtype is torch.bfloat16


@pytest.mark.usefixtures("_emulating")
def test_widened_experts_answer_like_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, gate_up, down = drawn(40, 24), drawn(4, 32, 24), drawn(4, 24, 16)
    ids, weights = torch.arange(80).view(40, 2) % 4, torch.rand(40, 2)
    monkeypatch.setattr("moe_core.kernels.torch_grouped.widens", precision.widens)
    with torch.no_grad():
        got = swiglu_experts_torch(hidden, gate_up, down, ids, weights)
        wanted = swiglu_experts_reference(
            hidden.double(), gate_up.double(), down.double(), ids, weights.double()
        )
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=0.05)


@pytest.mark.usefixtures("_emulating")
def test_widened_attention_answers_like_plain_attention() -> None:
    q, k, v = drawn(1, 4, 7, 16), drawn(1, 4, 9, 16), drawn(1, 4, 9, 16)
    mask = torch.zeros(7, 9, dtype=torch.bfloat16).masked_fill(torch.ones(7, 9).triu(3).bool(), float("-inf"))
    with torch.no_grad():
        got = precision.attention(q, k, v, attn_mask=mask)
    wanted = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask.double())
    torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=0.01)
