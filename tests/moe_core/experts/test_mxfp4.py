"""Experts that were released in mxfp4 are held so, and answer the same; others stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts
from moe_core.experts.mxfp4 import Mxfp4Experts, hold_in_mxfp4
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.mxfp4 import dequantise_mxfp4, quantise_mxfp4
from moe_core.routers import Routing

T, D, E, K, F = 7, 64, 5, 2, 96
GPT_OSS = Gating("clamped", limit=1.0)


@torch.no_grad()
def released(dtype=torch.bfloat16, gating=GPT_OSS, *, bias: bool = True, seed: int = 1) -> GroupedExperts:
    """Experts with weights that are mxfp4, widened as a checkpoint of gpt-oss is."""
    chance = torch.Generator().manual_seed(seed)
    experts = GroupedExperts(E, D, F, dtype, gating=gating, bias=bias)
    for name, parameter in experts.named_parameters():
        values = torch.randn(parameter.shape, generator=chance) * 0.2
        parameter.copy_(values if "bias" in name else dequantise_mxfp4(quantise_mxfp4(values), dtype))
    return experts


def inputs(dtype, device="cpu") -> tuple[torch.Tensor, Routing]:
    chance = torch.Generator().manual_seed(2)
    ids = torch.rand(T, E, generator=chance).argsort(-1)[:, :K]
    ids[3, 1] = -1
    scores = torch.zeros(T, E)
    hidden, weights = torch.randn(T, D, generator=chance), torch.rand(T, K, generator=chance)
    return hidden.to(device, dtype), Routing(*(part.to(device) for part in (ids, weights, scores, scores)))


class Layer(nn.Module):
    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts


@pytest.mark.parametrize("gating", [GPT_OSS, PLAIN], ids=lambda gating: gating.kind)
def test_released_weights_are_held_in_a_quarter_of_the_memory_and_answer_the_same(gating) -> None:
    layer = Layer(released(gating=gating))
    hidden, routing = inputs(torch.bfloat16)
    before = layer.experts(hidden, routing)
    wide = layer.experts.down_EDF.nbytes
    assert hold_in_mxfp4(layer) == 1
    assert isinstance(layer.experts, Mxfp4Experts)
    assert layer.experts.num_experts == E
    assert torch.equal(layer.experts(hidden, routing), before)
    held = layer.experts.weight("down")
    assert held.codes.nbytes + held.exponents.nbytes == wide * 17 // 64


def test_the_kernel_gets_what_is_held(monkeypatch) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = Layer(released(torch.float32)).to(device)
    hidden, routing = inputs(torch.float32, device)
    truth = layer.experts(hidden, routing)
    hold_in_mxfp4(layer)
    # Where no GPU is, the interpreter runs on CPU tensors what one would take.
    monkeypatch.setattr(Mxfp4Experts, "_on_codes", lambda self, hidden, ids: True)
    torch.testing.assert_close(layer.experts(hidden, routing), truth, rtol=2e-5, atol=2e-6)


def test_weights_that_would_be_rounded_stay_as_they_are() -> None:
    experts = released()
    with torch.no_grad():
        experts.down_EDF[E - 1, 0, 0] = 0.37
    layer = Layer(experts)
    assert hold_in_mxfp4(layer) == 0
    assert layer.experts is experts
    assert hold_in_mxfp4(Layer(GroupedExperts(2, 40, 32))) == 0


def test_what_is_held_cannot_learn() -> None:
    layer = Layer(released())
    hold_in_mxfp4(layer)
    for name in ("gate_up_E2FD", "down_EDF"):
        with pytest.raises(SpecError, match="load the model again"):
            getattr(layer.experts, name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_from_the_codes() -> None:
    layer = Layer(released()).cuda()
    hidden, routing = inputs(torch.bfloat16)
    routing = Routing(
        *(x.cuda() for x in (routing.expert_ids_TK, routing.weights_TK, routing.logits_TE, routing.probs_TE))
    )
    with torch.no_grad():
        truth = layer.experts(hidden.cuda(), routing)
        hold_in_mxfp4(layer)
        assert layer.experts._on_codes(hidden.cuda(), routing.expert_ids_TK)
        torch.testing.assert_close(layer.experts(hidden.cuda(), routing), truth, rtol=2e-2, atol=2e-2)
