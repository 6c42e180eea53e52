"""Turnout's own encoder–decoder: whatever a Seq2SeqSpec can say, for models that no family of transformers can.

Packed experts are such a model. config.json holds the specification itself; tensors are named as in the model's family.
"""

from __future__ import annotations

from typing import Any, Literal

from moe_core.spec.base import Spec
from moe_core.spec.seq2seq import Seq2SeqSpec

MODEL_TYPE = "turnout_seq2seq"


class TurnoutSeq2SeqConfig(Spec):
    """The specification, and what every config.json has."""

    model_type: Literal["turnout_seq2seq"]
    architectures: list[str] | None = None
    dtype: str | None = None
    is_encoder_decoder: Literal[True] = True
    specification: Seq2SeqSpec

    def to_spec(self) -> Seq2SeqSpec:
        """As written."""
        return self.specification


def keys_of(spec: Seq2SeqSpec, dtype: str) -> dict[str, Any]:
    """config.json of any specification."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["TurnoutForConditionalGeneration"],
        "dtype": dtype,
        "is_encoder_decoder": True,
        "specification": spec.model_dump(mode="json"),
    }
