"""The families that are known, by the model_type of their config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from moe_core.errors import FormatError
from moe_core.model.families.family import Family

# The module of this package that reads each model_type; the first of a module is its family's own.
MODULES = {
    "llama": "llama",
    "mixtral": "mixtral",
    "turnout_moe": "turnout_moe",
    "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "olmoe": "olmoe",
    "deepseek_v3": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "deepseek_v2": "deepseek_v2",
    "gpt_oss": "gpt_oss",
    "glam_moe": "glam_moe",
    "palm_moe": "palm_moe",
    "step3p5": "step3p5",
    "step3p7": "step3p5",
}


class _Families(Mapping[str, Family]):
    """Each is imported when it is first asked for: an engine serves one, and the schemas of all take a tenth of a second."""

    def __getitem__(self, name: str) -> Family:
        if MODULES[name] != name:
            raise KeyError(name)
        return _read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(MODULES.values()))

    def __len__(self) -> int:
        return len(set(MODULES.values()))


FAMILIES: Mapping[str, Family] = _Families()

# model_types that moe_core.load reads and that are no decoders.
ENCODER_DECODERS = ("switch_transformers", "nllb-moe", "turnout_seq2seq")


def family_of(model_type: object) -> Family:
    """The family of a model_type; FormatError with the known ones for any other."""
    if model_type in ENCODER_DECODERS:
        raise FormatError(
            f"config.json: model_type {model_type!r} is an encoder–decoder; such models are not imported or served, and "
            "run in Python: moe_core.load(directory)"
        )
    if not isinstance(model_type, str) or model_type not in MODULES:
        known = f"{', '.join(MODULES)}, and as encoder–decoders {', '.join(ENCODER_DECODERS)}"
        raise FormatError(
            f"config.json: model_type {str(model_type)[:40]!r} is not served; known are {known}"
        )
    return _read(MODULES[model_type])


def _read(module: str) -> Family:
    family: Family = import_module(f"{__package__}.{module}").FAMILY
    return family
