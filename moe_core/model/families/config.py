"""config.json in and out: a closed schema for each family, so that no unknown key can change what a model is."""

from __future__ import annotations

from typing import Any

from moe_core.errors import FormatError, SpecError
from moe_core.model.families.registry import FAMILIES, family_of
from moe_core.model.families.rope import rope_parameters
from moe_core.spec import ModelSpec

# Says whatever a ModelSpec with experts can.
OWN = "turnout_moe"


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The specification behind a config.json; FormatError for unknown families, keys and impossible values."""
    family = family_of(config.get("model_type"))
    try:
        return family.schema.parse(config).to_spec()
    except SpecError as error:
        raise FormatError(f"config.json: {error}") from error


def config_of(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The config.json of a model, readable by transformers where it knows the family.

    Raises FormatError when the family's spelling cannot say all of the specification.
    """
    family = family_of(spec.family)
    complaint = family.complaint(spec)
    if complaint is not None:
        raise FormatError(f"family {spec.family!r} {complaint}; family {OWN!r} can say the model")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": spec.family,
        "dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "hidden_act": spec.activation,
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_parameters": rope_parameters(spec),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": _one_or_many(spec.eos_token_ids),
        **family.keys(spec),
    }
    said = spec_of(config)
    if said != spec:
        lost = [name for name in ModelSpec.model_fields if getattr(said, name) != getattr(spec, name)]
        raise FormatError(
            f"a config.json of family {spec.family!r} cannot say this model's {', '.join(lost)}; "
            f"family {OWN!r} can: give it to the model's spec and save again"
        )
    return config


def family_for(spec: ModelSpec, *, first: str | None = None) -> str:
    """The family to save a mixture in: `first` where that can say it, else one of transformers, else Turnout's own.

    Without a `first`, families that transformers lacks come before Turnout's own: the model may have been of one.
    Raises FormatError where none can.
    """
    theirs = [family.name for family in FAMILIES.values() if family.in_transformers]
    others = [name for name in FAMILIES if name not in theirs and name != OWN]
    names = [*theirs, *others, OWN] if first is None else [first, *theirs, OWN]
    for name in names:
        if _says(name, spec):
            return name
    raise FormatError(
        f"no family's config.json can say all of this model of family {spec.family!r}; leave out what counts for nothing, "
        "such as bounds of an activation that has none"
    )


def _says(name: str, spec: ModelSpec) -> bool:
    """Whether the specification survives a config.json of that family."""
    changed = spec.model_copy(update={"family": name})
    try:
        return spec_of(config_of(changed, "float32")) == changed
    except FormatError:
        return False


def _one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)
