"""Gates learn at a rate of their own and are clipped by a norm of their own, before everybody is."""

from __future__ import annotations

import pytest
import torch

from moe_core.model.init import random_decoder
from moe_core.routers.param_groups import clip_gradients, parameter_groups, split_parameters
from moe_core.spec.gate import Hierarchical, SigmoidGroups
from tests.moe_core.tiny import STD, tiny_turnout


def model_with(gate: object):
    spec = tiny_turnout()
    moe = spec.moe.model_copy(update={"gate": gate, "num_experts": 4})
    return random_decoder(spec.model_copy(update={"moe": moe}), 0, STD)


def test_every_gate_tensor_that_learns_is_in_the_first_group() -> None:
    model = model_with(Hierarchical(num_domains=2, selection_bias=True))
    gates, others = parameter_groups(model, 1e-3, 1e-2)
    assert (gates["lr"], others["lr"]) == (1e-2, 1e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(".router." in names[id(parameter)] for parameter in gates["params"])
    assert not any(".router." in names[id(parameter)] for parameter in others["params"])
    # Three maps a layer in two layers; the balancing bias is moved by loads, not by gradients.
    assert len(gates["params"]) == 6
    assert len(gates["params"]) + len(others["params"]) == sum(p.requires_grad for p in model.parameters())


def test_weight_decay_pulls_at_everything_but_gates() -> None:
    model = model_with(SigmoidGroups())
    gates, others = split_parameters(model)
    before = [parameter.detach().clone() for parameter in [*gates, *others]]
    optimiser = torch.optim.AdamW(parameter_groups(model, 1e-2, 1e-2), weight_decay=0.5)
    for parameter in [*gates, *others]:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for number, (parameter, was) in enumerate(zip([*gates, *others], before, strict=True)):
        expected = was if number < len(gates) else was * (1 - 1e-2 * 0.5)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)


def test_a_burst_of_a_gate_is_clipped_while_the_others_stay() -> None:
    model = model_with(SigmoidGroups())
    gates, others = split_parameters(model)
    for parameter in gates:
        parameter.grad = torch.full_like(parameter, 10.0)
    for parameter in others:
        parameter.grad = torch.full_like(parameter, 1e-4)
    gate_norm, norm = clip_gradients(model, max_norm=5.0, router_max_norm=1.0)
    assert float(gate_norm) > 100.0
    clipped = torch.stack([parameter.grad.norm() for parameter in gates]).norm()
    assert float(clipped) == pytest.approx(1.0, rel=1e-4)
    # A clip of everything together would have scaled them down a hundredfold.
    assert all((parameter.grad == 1e-4).all() for parameter in others)
    assert float(norm) < 5.0


def test_the_whole_is_clipped_after_the_gates() -> None:
    model = model_with(SigmoidGroups())
    gates, others = split_parameters(model)
    for parameter in [*gates, *others]:
        parameter.grad = torch.ones_like(parameter)
    clip_gradients(model, max_norm=2.0, router_max_norm=1.0)
    total = torch.stack([parameter.grad.norm() for parameter in [*gates, *others]]).norm()
    assert float(total) == pytest.approx(2.0, rel=1e-4)
