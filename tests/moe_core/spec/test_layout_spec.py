"""What a layout says reaches the model that is built from it."""

from __future__ import annotations

import pytest

from moe_core.spec import LayoutSpec, RoutingSpec
from moe_core.spec.temperature import TemperatureSpec
from tests.moe_core.tiny import tiny_llama


def test_the_temperature_of_a_layout_reaches_the_model_that_is_built() -> None:
    mixture = LayoutSpec(moe_layers=(0,), temperature=0.5).applied_to(tiny_llama())
    assert mixture.moe is not None and mixture.moe.temperature == 0.5
    assert mixture.family == "turnout_moe"


def test_a_layout_has_a_temperature_or_a_schedule() -> None:
    with pytest.raises(ValueError, match="not both"):
        LayoutSpec(moe_layers=(0,), temperature=0.5, temperature_schedule=TemperatureSpec())


def test_a_stored_policy_that_still_names_the_temperature_is_read_and_a_new_one_refused() -> None:
    assert RoutingSpec.model_validate({"temperature": 1.0}) == RoutingSpec()
    with pytest.raises(ValueError, match="temperature"):
        RoutingSpec.model_validate({"temperature": 0.5})
