"""Which models can be composed: what they must have in common, and what becomes of the rest. No tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_core.spec.model import ModelSpec

# How files are spelt, which tokens begin and end a text, and how long one may be: nothing of a tensor's shape or meaning.
FREE = frozenset({"family", "bos_token_id", "eos_token_ids", "max_position_embeddings"})


def differences(first: ModelSpec, other: ModelSpec) -> list[str]:
    """The fields, as "moe.num_experts", in which two models differ so that they cannot be composed; [] when they can."""
    return list(_differing(first.model_dump(exclude=set(FREE)), other.model_dump(exclude=set(FREE)), ""))


def _differing(first: Mapping[str, Any], other: Mapping[str, Any], before: str) -> Iterator[str]:
    for name in dict.fromkeys((*first, *other)):
        one, two = first.get(name), other.get(name)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            yield from _differing(one, two, f"{before}{name}.")
        elif one != two:
            yield before + name


def joined(specs: Sequence[ModelSpec]) -> ModelSpec:
    """The specification that models without differences are composed from: the first one's, with what the others end by.

    A text ends with any token that ends one for a model, and is no longer than the shortest that a model takes; it begins
    as the first model has it. Raises SpecError for more end tokens than a model has.
    """
    ends = tuple(dict.fromkeys(token for spec in specs for token in spec.eos_token_ids))
    longest = min(spec.max_position_embeddings for spec in specs)
    return ModelSpec.parse(
        {**specs[0].model_dump(), "eos_token_ids": ends, "max_position_embeddings": longest}
    )
