"""What a gate passes over of the fields that gates share is what its specification and the reference say it passes over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from tests.moe_core.tiny import tiny_turnout


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
