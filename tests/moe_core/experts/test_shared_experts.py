"""A shared expert is one that every token has: beside the routed ones, with a gate of its own or none, in the cases that it may meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.kernels.reference import gated_experts_reference
from moe_core.model.layers import MoeMlp
from moe_core.spec import ModelSpec
from tests.moe_core.experts.nine_cases import CASES, assert_same, dense
from tests.moe_core.experts.ways import GATINGS, truths_of_gated
from tests.moe_core.tiny import tiny_family, tiny_turnout

# It has no choice of experts, so that the other cases say nothing of it.
ALONE = ["ties", "NaN", "no token", "one expert", "odd rows", "huge"]
LAYERS = {"plain": tiny_turnout, "gated by the token": lambda: tiny_family("qwen2_moe")}


def layer_of(spec: ModelSpec) -> MoeMlp:
    assert spec.moe is not None
    layer = MoeMlp(spec, spec.moe.moe_layers[0], torch.float64)
    chance = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance) / 4)
    return layer


def weights_of(layer: MoeMlp, x_TD: Tensor) -> Tensor:
    """(T, 1) what the shared expert counts for in each token."""
    if layer.shared_gate is None:
        return torch.ones(len(x_TD), 1, dtype=torch.float64)
    return 1.0 / (1.0 + torch.exp(-(x_TD * layer.shared_gate.weight[0]).sum(-1, keepdim=True)))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("case", ALONE)
@torch.no_grad()
def test_it_equals_the_loop_and_comes_on_top_of_the_routed_ones(case: str, kind: str) -> None:
    spec = LAYERS[kind]()
    layer = layer_of(spec)
    assert layer.shared_expert is not None
    assert (layer.shared_gate is None) == (kind == "plain")
    x_TD, _, _ = CASES[case].inputs(spec.hidden_size, torch.float64)
    routed_TD = torch.randn(x_TD.shape, generator=torch.Generator().manual_seed(7)).double()
    ids_T1, weights_T1 = torch.zeros(len(x_TD), 1, dtype=torch.long), weights_of(layer, x_TD)
    maps = (layer.shared_expert.gate_up_proj.weight[None], layer.shared_expert.down_proj.weight[None])
    if case == "huge":
        shared_TD = dense(x_TD, ids_T1, weights_T1, truths_of_gated("silu", *maps)[1])
    else:
        shared_TD = gated_experts_reference(x_TD, *maps, ids_T1, weights_T1, GATINGS["silu"])
    assert_same(layer.with_shared(x_TD, routed_TD), routed_TD + shared_TD, 1e-9)
    # NaN stays in its token here too.
    sick = set(shared_TD.isnan().any(-1).nonzero().flatten().tolist())
    assert sick == set(CASES[case].sick)
