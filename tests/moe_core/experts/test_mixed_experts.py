"""Experts of several kinds and widths in one layer: formulas, buffer and gradients. What they compute together: `test_nine_cases`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts, MixedExperts
from moe_core.kernels.formulas import FORMULAS
from moe_core.kernels.gating import Gating
from moe_core.kernels.mixed import mixed_experts_torch
from moe_core.kernels.mixed_reference import mixed_experts_reference
from moe_core.routers import Routing
from moe_core.spec.expert_kinds import (
    ExpertKind,
    IdentityExpert,
    MlpExpert,
    SwigluExpert,
    ZeroExpert,
)
from tests.moe_core.experts.nine_cases import drawn
from tests.moe_core.experts.ways import KINDS

WIDTH = 12


def layer_of(kinds: tuple[ExpertKind, ...]) -> MixedExperts:
    layer = MixedExperts(kinds, WIDTH, torch.float64)
    torch.nn.init.normal_(layer.weights_N, std=0.5)
    return layer


@pytest.mark.parametrize(
    "kind",
    [SwigluExpert(width=7, activation=name) for name in ("silu", "gelu")]
    + [
        MlpExpert(width=7, activation=name, bias=bias)
        for name in ("silu", "gelu", "relu", "relu2")
        for bias in (False, True)
    ],
    ids=str,
)
def test_each_activation_is_that_of_its_formula(kind: ExpertKind) -> None:
    torch.manual_seed(5)
    layer = layer_of((kind,))
    x_TD, ids_TK, weights_TK = (
        torch.randn(9, WIDTH).double(),
        torch.zeros(9, 1).long(),
        torch.rand(9, 1).double(),
    )
    fast_TD = mixed_experts_torch(x_TD, layer.weights_N, (kind,), ids_TK, weights_TK)
    slow_TD = mixed_experts_reference(x_TD, [layer.tensors(0)], (kind,), ids_TK, weights_TK)
    assert torch.allclose(fast_TD, slow_TD, rtol=1e-9, atol=1e-10)


def test_the_formulas_are_those_of_the_papers() -> None:
    """At values by hand, so that a slip in the formulas themselves shows."""
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    assert FORMULAS["silu"](x).tolist() == pytest.approx([-0.2689414214, 0.0, 1.7615941560])
    assert FORMULAS["gelu"](x).tolist() == pytest.approx([-0.1586552539, 0.0, 1.9544997361])
    assert FORMULAS["relu"](x).tolist() == [0.0, 0.0, 2.0]
    assert FORMULAS["relu2"](x).tolist() == [0.0, 0.0, 4.0]


def test_a_swapped_expert_shows() -> None:
    torch.manual_seed(1)
    layer = layer_of((SwigluExpert(width=6), SwigluExpert(width=6), ZeroExpert(), IdentityExpert()))
    x_TD, weights_TK, ids_TK = (
        torch.randn(9, WIDTH).double(),
        torch.rand(9, 2).double(),
        drawn(9, 4, 2)(torch.default_generator),
    )
    for one, other in ((0, 1), (2, 3), (1, 3)):
        swapped_TK = torch.where(ids_TK == one, other, torch.where(ids_TK == other, one, ids_TK))
        before, after = (
            mixed_experts_torch(x_TD, layer.weights_N, layer.kinds, ids, weights_TK)
            for ids in (ids_TK, swapped_TK)
        )
        assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_comes_of_a_zero_expert_whatever_the_token(bad: float) -> None:
    """Beside an identity expert too, which gives tokens that did not choose it no share of themselves."""
    layer = layer_of((SwigluExpert(width=6), ZeroExpert(), IdentityExpert()))
    x_TD, ids_TK = torch.full((3, WIDTH), bad).double(), torch.tensor([[1, 1], [1, -1], [2, 1]])
    x_TD.requires_grad_()
    out_TD = mixed_experts_torch(x_TD, layer.weights_N, layer.kinds, ids_TK, torch.ones(3, 2).double())
    assert out_TD[:2].eq(0.0).all() and not out_TD[2].isfinite().any()
    (grad_TD,) = torch.autograd.grad(out_TD.sum(), x_TD)
    assert grad_TD.tolist() == [[0.0] * WIDTH] * 2 + [[1.0] * WIDTH]


@pytest.mark.parametrize("num_tokens", [0, 3])
@pytest.mark.parametrize("kind", ["mixed", "mixed with an identity", "grouped", "with biases", "of gelu"])
def test_tokens_without_any_expert_still_have_gradients(kind: str, num_tokens: int) -> None:
    """Of zeros, for whatever learns: a step in which every choice was dropped is a step all the same."""
    mixed = {"mixed": KINDS[:2], "mixed with an identity": (SwigluExpert(width=3), IdentityExpert())}.get(
        kind
    )
    gating = Gating(kind="gelu") if kind == "of gelu" else Gating()
    layer: MixedExperts | GroupedExperts
    if mixed:
        layer = layer_of(mixed)
    else:
        layer = GroupedExperts(2, WIDTH, 3, torch.float64, bias=kind == "with biases", gating=gating)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x_TD = torch.randn(num_tokens, WIDTH, dtype=torch.float64)
    ids_TK, weights_TK = torch.full((num_tokens, 2), -1), torch.zeros(num_tokens, 2, dtype=torch.float64)
    out_TD = layer(x_TD, Routing(ids_TK, weights_TK, weights_TK, weights_TK))
    assert out_TD.shape == x_TD.shape and not out_TD.any()
    out_TD.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    with torch.no_grad():
        assert torch.equal(layer(x_TD, Routing(ids_TK, weights_TK, weights_TK, weights_TK)), out_TD)


def test_the_buffer_holds_each_expert_at_its_offset() -> None:
    layer = layer_of(KINDS)
    sizes = [3 * 7 * WIDTH, 0, 2 * 5 * WIDTH, 0, 3 * 16 * WIDTH, 3 * WIDTH, 2 * 9 * WIDTH + 9 + WIDTH, 0]
    assert [layer.part(expert).numel() for expert in range(8)] == sizes
    assert layer.weights_N.numel() == sum(sizes)
    with torch.no_grad():
        before_N = layer.weights_N.clone()
        layer.tensors(4)["w2.weight"].zero_()
    changed = torch.nonzero(layer.weights_N != before_N).flatten()
    assert int(changed.min()) == layer.offsets[5] - 16 * WIDTH
    assert int(changed.max()) == layer.offsets[5] - 1


def test_a_buffer_of_another_length_is_named() -> None:
    with pytest.raises(SpecError, match=r"experts of 252 values do not fit a buffer of shape \(251,\)"):
        mixed_experts_torch(
            torch.zeros(1, WIDTH), torch.zeros(251), KINDS[:1], torch.zeros(1, 1).long(), torch.ones(1, 1)
        )


def test_experts_that_are_unlike_have_no_common_shape() -> None:
    layer = layer_of(KINDS)
    for name in ("gate_up_E2FD", "down_EDF"):
        with pytest.raises(SpecError, match="different kinds and widths"):
            getattr(layer, name)


@torch.no_grad()
def test_identity_experts_are_those_of_longcat_flash() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.longcat_flash import modeling_longcat_flash as code

    torch.manual_seed(4)
    config = transformers.LongcatFlashConfig(
        hidden_size=WIDTH, expert_ffn_hidden_size=6, n_routed_experts=3, zero_expert_num=2, num_layers=1,
        num_attention_heads=2, num_hidden_layers=2,
    )  # fmt: skip
    theirs: Any = code.LongcatFlashExperts(config)
    for parameter in theirs.parameters():
        parameter.normal_(0.0, 0.4)
    kinds = (*(SwigluExpert(width=6),) * 3, IdentityExpert(), IdentityExpert())
    ours = MixedExperts(kinds, WIDTH, torch.float32)
    for expert in range(3):
        tensors = ours.tensors(expert)
        tensors["w1.weight"].copy_(theirs.gate_up_proj[expert, :6])
        tensors["w3.weight"].copy_(theirs.gate_up_proj[expert, 6:])
        tensors["w2.weight"].copy_(theirs.down_proj[expert])
    x_TD, weights_TK, ids_TK = (
        torch.randn(33, WIDTH),
        torch.rand(33, 2),
        drawn(33, 5, 2)(torch.default_generator),
    )
    routing = Routing(ids_TK, weights_TK, torch.zeros(33, 5), torch.zeros(33, 5))
    assert (ids_TK >= 3).any()
    assert torch.allclose(ours(x_TD, routing), theirs(x_TD, ids_TK, weights_TK), rtol=1e-5, atol=1e-6)
