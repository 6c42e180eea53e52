"""What a gate passes over of the fields that gates share is what its specification and the reference say it passes over."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from moe_core.spec.gate import Gate, GateSpec
from tests.moe_core.tiny import tiny_turnout

GATES: tuple[type[Gate], ...] = get_args(get_args(GateSpec)[0])
OWN: dict[str, dict[str, Any]] = {
    "sigmoid_groups": {"num_groups": 4, "topk_group": 2},
    "hash": {"weights": "learned"},
    "hierarchical": {"num_domains": 2, "groups_per_domain": 2},
}


def mixture(gate: dict[str, Any], **changes: Any) -> Decoder:
    """A random model of eight experts a layer; the same weights for the same shapes."""
    told = tiny_turnout().model_dump()
    moe = {**told["moe"], "num_experts": 8, "top_k": 2, "gate": gate, **changes}
    return random_decoder(ModelSpec.parse({**told, "moe": moe}), seed=1, std=0.3)


def said(model: Decoder) -> Tensor:
    ids = torch.randint(3, 60, (3, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model(ids)


def test_a_bias_of_experts_that_choose_moves_no_choice() -> None:
    model = mixture({"kind": "expert_choice", "selection_bias": True})
    before = said(model)
    for mlp in model.moe_layers():
        mlp.router.tensors["selection_bias"].data.normal_(0, 0.5)
    assert torch.equal(said(model), before)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.model_fields["kind"].default)
def test_weights_that_sum_to_one_are_for_the_gates_that_do_not_weigh_by_themselves(gate: type[Gate]) -> None:
    kind = gate.model_fields["kind"].default
    told = {"kind": kind, **OWN.get(kind, {})}
    top_k = 1 if kind in ("switch", "base") else 2
    summed, plain = (said(mixture(told, top_k=top_k, norm_topk_prob=norm)) for norm in (True, False))
    assert torch.equal(summed, plain) is gate.weighs_by_itself
