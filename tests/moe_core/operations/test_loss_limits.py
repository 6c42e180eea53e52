"""What an edit may cost: a domain that would lose more is named, and so is a loss that no limit can be held against."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.operations import merge_experts, preview_removal, remove_expert
from moe_core.operations.passes import loss_by_domain
from moe_core.operations.prompts import Prompts
from moe_core.spec.operations import MergeExpertsSpec, RemoveExpertSpec
from tests.moe_core.operations.models import mixture, some_prompts


def test_a_loss_that_is_too_much_is_refused_by_name() -> None:
    model, prompts = mixture(), some_prompts()
    change = preview_removal(model, RemoveExpertSpec(expert=1), prompts)["loss_change"]
    limit = max(change.values())
    worst = max(change, key=change.__getitem__)
    if limit > 0:
        remove_expert(model, RemoveExpertSpec(expert=1, max_loss_increase=limit + 1e-6), prompts)
        with pytest.raises(SpecError, match=f"domain '{worst}' would lose"):
            remove_expert(model, RemoveExpertSpec(expert=1, max_loss_increase=limit / 2), prompts)
    with pytest.raises(SpecError, match="needs prompts to measure with"):
        remove_expert(model, RemoveExpertSpec(expert=1, max_loss_increase=0.1))


@pytest.mark.parametrize("limit", [0.0, 1e3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_passes_no_limit(bad: float, limit: float) -> None:
    model, prompts = mixture(), some_prompts()
    with torch.no_grad():
        list(model.moe_layers())[-1].experts.down_EDF[2, 0, 0] = bad
    told = "the loss of domain 'law' is nan before and nan after"
    with pytest.raises(SpecError, match=told):
        remove_expert(model, RemoveExpertSpec(expert=1, max_loss_increase=limit), prompts)
    with pytest.raises(SpecError, match=told):
        merge_experts(model, MergeExpertsSpec(first=0, second=1, max_loss_increase=limit), prompts)
    # Without the damaged expert the losses after are sound, and those before are not.
    with pytest.raises(SpecError, match=r"is nan before and \d"):
        remove_expert(model, RemoveExpertSpec(expert=2, max_loss_increase=limit), prompts)
    assert all(
        loss > 0.0
        for loss in loss_by_domain(remove_expert(model, RemoveExpertSpec(expert=2))[0], prompts).values()
    )


def test_a_limit_needs_a_token_to_measure() -> None:
    prompts = Prompts.of({"law": [[5], [6]]})
    with pytest.raises(SpecError, match="needs prompts to measure with"):
        remove_expert(mixture(), RemoveExpertSpec(expert=1, max_loss_increase=1.0), prompts)
