"""The families that are known, by the model_type of their config.json."""

from __future__ import annotations

from moe_core.errors import FormatError
from moe_core.model.families import llama, mixtral, olmoe, qwen3_moe, turnout_moe
from moe_core.model.families.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (llama, mixtral, turnout_moe, qwen3_moe, olmoe)
}


def family_of(model_type: object) -> Family:
    """The family of a model_type; FormatError with the known ones for any other."""
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise FormatError(
            f"config.json: model_type {str(model_type)[:40]!r} is not served; known are {known}"
        )
    return family
