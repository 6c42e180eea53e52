"""Every family is known by its own name and by the other model_types that it says it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.errors import FormatError
from moe_core.model.families import FAMILIES, registry
from moe_core.model.families.registry import MODULES, family_of


def test_each_family_has_the_names_that_it_says() -> None:
    said = [name for family in FAMILIES.values() for name in (family.name, *family.aliases)]
    assert said == list(MODULES)
    assert [family.name for family in FAMILIES.values()] == list(FAMILIES)
    assert len(FAMILIES) == len(list(FAMILIES))


def test_every_module_that_has_a_family_is_known() -> None:
    folder = Path(registry.__file__).parent
    having = {path.stem for path in folder.glob("*.py") if "\nFAMILY = Family(" in path.read_text()}
    assert having == set(FAMILIES)


def test_an_alias_leads_to_its_family_and_is_none_of_its_own() -> None:
    assert family_of("kimi_k2") is FAMILIES["deepseek_v3"]
    assert "kimi_k2" not in FAMILIES
    with pytest.raises(KeyError):
        FAMILIES["kimi_k2"]


@pytest.mark.parametrize("name", ["registry", "gpt9", "", None, 3, ["llama"]])
def test_what_is_no_model_type_is_refused(name: object) -> None:
    with pytest.raises(
        FormatError, match=r"known are llama, .*deepseek_v3, kimi_k2, .*step3p7, and as encoder"
    ):
        family_of(name)
