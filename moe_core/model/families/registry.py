"""The families that are known, by the model_type of their config.json."""

from __future__ import annotations

from moe_core.errors import FormatError
from moe_core.model.families import (
    deepseek_v2,
    deepseek_v3,
    glam_moe,
    gpt_oss,
    llama,
    mixtral,
    olmoe,
    palm_moe,
    qwen2_moe,
    qwen3_moe,
    step3p5,
    turnout_moe,
)
from moe_core.model.families.family import Family

_MODULES = (
    llama,
    mixtral,
    turnout_moe,
    qwen2_moe,
    qwen3_moe,
    olmoe,
    deepseek_v3,
    deepseek_v2,
    gpt_oss,
    glam_moe,
    palm_moe,
    step3p5,
)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
BY_NAME = {name: family for family in FAMILIES.values() for name in (family.name, *family.aliases)}


# model_types that moe_core.load reads and that are no decoders.
ENCODER_DECODERS = ("switch_transformers", "nllb-moe", "turnout_seq2seq")


def family_of(model_type: object) -> Family:
    """The family of a model_type; FormatError with the known ones for any other."""
    family = BY_NAME.get(model_type) if isinstance(model_type, str) else None
    if model_type in ENCODER_DECODERS:
        raise FormatError(
            f"config.json: model_type {model_type!r} is an encoder–decoder; such models are not imported or served, and "
            "run in Python: moe_core.load(directory)"
        )
    if family is None:
        known = f"{', '.join(BY_NAME)}, and as encoder–decoders {', '.join(ENCODER_DECODERS)}"
        raise FormatError(
            f"config.json: model_type {str(model_type)[:40]!r} is not served; known are {known}"
        )
    return family
