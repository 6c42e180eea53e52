"""Soft MoE against a slow loop, closed forms, and differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide
from moe_core.spec.gate import Soft
from tests.moe_core.routers.gate_cases import moe_of, tensors_of

NEG_INF = float("-inf")


def mixes(
    hidden_TD: Tensor, num_experts: int = 3, slots: int = 2, normalise: bool = True, **call: object
) -> tuple[dict[str, Tensor], Routing]:
    moe = moe_of(Soft(slots_per_expert=slots, normalise=normalise), num_experts, 1)
    tensors = tensors_of(moe, hidden_TD.shape[1])
    return tensors, decide(moe, tensors, GateCall(hidden_TD, 1, **call))  # type: ignore[arg-type]


def layer(routing: Routing, hidden_TD: Tensor) -> Tensor:
    """A Soft MoE layer whose expert e multiplies by e + 1 and squashes."""
    mix = routing.mix
    assert mix is not None
    slots_RD = mix.dispatch_RT @ hidden_TD
    return mix.combine_TR @ torch.tanh(slots_RD * (mix.expert_R1 + 1))


def test_it_equals_a_loop_over_slots_and_tokens() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    tensors, found = mixes(x)
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in x.double().tolist()]
    slots = [
        [v / math.sqrt(sum(u * u for u in row)) for v in row] for row in tensors["weight"].double().tolist()
    ]
    logits = [[sum(a * b for a, b in zip(t, s, strict=True)) for s in slots] for t in unit]
    into = [[math.exp(logits[t][s]) for t in range(7)] for s in range(6)]
    mixed = [
        [sum(w * x[t, d].item() for t, w in enumerate(row)) / sum(row) for d in range(5)] for row in into
    ]
    out = [[math.tanh(v * (s // 2 + 1)) for v in row] for s, row in enumerate(mixed)]
    expected = []
    for t in range(7):
        back = [math.exp(z) for z in logits[t]]
        expected.append([sum(w * out[s][d] for s, w in enumerate(back)) / sum(back) for d in range(5)])
    torch.testing.assert_close(layer(found, x), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_order_of_tokens_does_not_matter() -> None:
    torch.manual_seed(1)
    x, order = torch.randn(9, 5), torch.randperm(9)
    straight = layer(mixes(x)[1], x)
    torch.testing.assert_close(layer(mixes(x[order])[1], x[order]), straight[order])


def test_one_slot_of_one_expert_that_likes_all_alike_is_the_mean() -> None:
    x = torch.randn(6, 4)
    moe = moe_of(Soft(), 1, 1)
    tensors = {"weight": torch.zeros(1, 4), "scale": torch.ones(1)}
    found = decide(moe, tensors, GateCall(x, 1))
    torch.testing.assert_close(layer(found, x), torch.tanh(x.mean(0)).expand(6, -1))


def test_sequences_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(2)
    x = torch.randn(10, 5)
    sequence = torch.tensor([7, 7, 3, 3, 3, 7, 3, 7, 7, 3])
    together = layer(mixes(x, sequence_T=sequence)[1], x)
    for name in (3, 7):
        own = sequence == name
        torch.testing.assert_close(together[own], layer(mixes(x[own])[1], x[own]))


def test_padding_enters_no_slot() -> None:
    torch.manual_seed(3)
    x = torch.randn(8, 5)
    real = torch.arange(8) < 6
    padded = layer(mixes(x, real_T=real)[1], x)
    torch.testing.assert_close(padded[:6], layer(mixes(x[:6])[1], x[:6]))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_gradient_is_that_of_differences(normalise: bool) -> None:
    torch.manual_seed(4)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    moe = moe_of(Soft(slots_per_expert=2, normalise=normalise), 2, 1)

    def run(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        tensors = {"weight": weight, "scale": scale} if normalise else {"weight": weight}
        return layer(decide(moe, tensors, GateCall(x, 1)), x)

    inputs = (x, weight, scale) if normalise else (x, weight, scale.detach())
    assert torch.autograd.gradcheck(run, inputs)


def test_a_prior_moves_all_slots_of_an_expert() -> None:
    x = torch.randn(5, 4)
    _, plain = mixes(x)
    bias = torch.tensor([[0.0, NEG_INF, 1.0]]).expand(5, -1)
    _, found = mixes(x, bias_TE=bias)
    assert found.mix is not None
    assert (found.mix.combine_TR[:, 2:4] == 0).all()
    # Every token masks the second expert: its slots hold nothing.
    assert (found.mix.dispatch_RT[2:4] == 0).all()
    odds = torch.log(found.probs_TE[:, 2] / found.probs_TE[:, 0])
    torch.testing.assert_close(odds, torch.log(plain.probs_TE[:, 2] / plain.probs_TE[:, 0]) + 1.0)


def test_a_temperature_sharpens_both_ways() -> None:
    x = torch.randn(6, 4)
    _, cold = mixes(x, temperature=1e-3)
    assert cold.mix is not None
    assert (cold.mix.dispatch_RT.max(-1).values > 0.99).all()
    assert (cold.mix.combine_TR.max(-1).values > 0.99).all()


def test_no_tokens_and_one_token() -> None:
    _, empty = mixes(torch.empty(0, 4))
    assert empty.mix is not None
    assert empty.mix.combine_TR.shape[0] == 0
    x = torch.randn(1, 4)
    _, one = mixes(x)
    assert one.mix is not None
    assert (one.mix.dispatch_RT == 1.0).all()
