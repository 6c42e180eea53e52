"""What is measured of a prompt is that prompt's own: padding beside it changes nothing, whatever the gate sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moe_core.operations.learning import mean_loss
from moe_core.operations.passes import hidden_of
from tests.moe_core.operations.models import mixture, some_prompts

FULL = {"train_factor": 1.0, "eval_factor": 1.0}


@pytest.mark.parametrize(
    "moe",
    [
        {"gate": {"kind": "soft"}},
        {"gate": {"kind": "expert_choice"}},
        {"capacity": FULL},
        {"capacity": {**FULL, "overflow": "next_best", "priority": "weight"}},
    ],
    ids=str,
)
@torch.no_grad()
def test_padding_takes_no_place_of_an_expert(moe: dict[str, Any]) -> None:
    model, prompts = mixture(**moe), some_prompts()
    nothing = torch.zeros(len(prompts), 20, dtype=torch.long)
    wider = replace(
        prompts,
        ids_NS=torch.cat([prompts.ids_NS, nothing], 1),
        real_NS=torch.cat([prompts.real_NS, nothing.bool()], 1),
    )
    narrow_RD, wide_RD = (hidden_of(model, batch)[batch.real_T] for batch in (prompts, wider))
    assert torch.allclose(wide_RD, narrow_RD, rtol=1e-4, atol=1e-4)
    assert torch.allclose(mean_loss(model, wider), mean_loss(model, prompts), rtol=1e-5)
