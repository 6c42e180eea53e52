"""Rotary positions as config.json spells them, in the old and the new way."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from moe_core.model.families.two_names import one_name
from moe_core.spec import ModelSpec
from moe_core.spec.attention import RopeSpec
from moe_core.spec.base import Spec

# Written only where they differ from what is assumed without them.
_LLAMA3_KEYS = ("low_freq_factor", "high_freq_factor")
_YARN_KEYS = ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")


class RopeParameters(Spec):
    """Rotary positions as transformers 5 writes them (`rope_parameters`), or older files (`rope_scaling`).

    A stretching that says no `factor`, or null, has that of the longest text over the original one. transformers takes it so
    where it says null, and refuses a file that leaves it out.
    """

    rope_type: Literal["default", "yarn", "llama3"] = "default"
    rope_theta: float | None = None
    # Most families turn whole heads; those that do not have PartialRopeParameters.
    partial_rotary_factor: float | None = Field(default=None, ge=1.0, le=1.0)
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_type(cls, data: Any) -> Any:
        # Older files spell the key "type", and some spell it both ways.
        return one_name(data, "rope_type", "type")

    def to_rope(self, max_position_embeddings: int, *, interleaved: bool) -> RopeSpec:
        """The specification; lengths that are not said follow from the model's own."""
        partial = 1.0 if self.partial_rotary_factor is None else self.partial_rotary_factor
        if self.rope_type == "default":
            return RopeSpec(interleaved=interleaved, partial_rotary_factor=partial)
        original = self.original_max_position_embeddings or max_position_embeddings
        keys = _YARN_KEYS if self.rope_type == "yarn" else _LLAMA3_KEYS
        said = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return RopeSpec.parse(
            {
                "kind": self.rope_type,
                "interleaved": interleaved,
                "partial_rotary_factor": partial,
                "factor": self.factor or max_position_embeddings / original,
                "original_max_position_embeddings": original,
                **said,
            }
        )


class PartialRopeParameters(RopeParameters):
    """The same where only the first part of each head may turn."""

    partial_rotary_factor: float | None = Field(default=None, gt=0.0, le=1.0)


def rope_parameters(spec: ModelSpec) -> dict[str, Any]:
    """The `rope_parameters` of a model."""
    rope = spec.rope
    partial = rope.partial_rotary_factor
    said = {} if partial == 1.0 else {"partial_rotary_factor": partial}
    if rope.kind == "plain":
        return {"rope_theta": spec.rope_theta, "rope_type": "default", **said}
    plain = RopeSpec()
    changed = {key: getattr(rope, key) for key in _YARN_KEYS if getattr(rope, key) != getattr(plain, key)}
    if rope.kind == "llama3":
        changed = {key: getattr(rope, key) for key in _LLAMA3_KEYS}
    return {
        "rope_theta": spec.rope_theta,
        "rope_type": rope.kind,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
        **said,
        **changed,
    }
