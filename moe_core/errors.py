"""One tree of errors for the whole library.

* MoeCoreError
  * SpecError            a specification that cannot be built
  * CheckpointError      a file or directory that cannot be used as a model
    * FormatError        the bytes do not keep the rules of their format
    * HashMismatch       the bytes are not the bytes that were promised
  * InputError           tokens that a model cannot be given
  * TrainingError        a training run that cannot go on
    * NonFiniteLoss      the loss became NaN or infinite
  * EngineError          a request that the engine cannot serve
    * EngineBusy         no room now; try again later
    * PromptTooLong      the prompt does not fit the model or the cache
  * Cancelled            the caller asked to stop
  * MissingLibrary       an optional library is not installed, or too old
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from moe_core.sentences import CORE


class MoeCoreError(Exception):
    """The root of every error that moe_core raises on purpose.

    `reason` and `values` say what happened in data where it is one of `moe_core.sentences`; "" and nothing elsewhere.
    """

    reason: str = ""
    values: Mapping[str, object] = MappingProxyType({})

    @classmethod
    def of(cls, reason: str, **values: object) -> Self:
        """The error with the sentence of a code. Raises KeyError for an unknown code."""
        error = cls(CORE.say(reason, **values))
        error.reason, error.values = reason, MappingProxyType(values)
        return error


class SpecError(MoeCoreError):
    """A specification contradicts itself or the model that it is applied to.

    `faults` has every complaint apart: the way to the field that it is about (() for the whole), and its sentence.
    """

    faults: tuple[tuple[tuple[int | str, ...], str], ...] = ()

    @property
    def complaints(self) -> tuple[tuple[tuple[int | str, ...], str], ...]:
        """The faults; what was raised as one sentence is one fault of the whole."""
        return self.faults or (((), str(self)),)


class CheckpointError(MoeCoreError):
    """A file or directory cannot be read or written as a model."""


class FormatError(CheckpointError):
    """The bytes of a file do not keep the rules of its format."""


class HashMismatch(CheckpointError):
    """A file's sha256 is not the promised one."""

    def __init__(self, path: str, expected: str, actual: str) -> None:
        super().__init__(CORE.say("wrong_hash", path=path, actual=actual, expected=expected))
        self.reason = "wrong_hash"
        self.values = MappingProxyType({"path": path, "actual": actual, "expected": expected})
        self.path = path
        self.expected = expected
        self.actual = actual


class InputError(MoeCoreError):
    """A model cannot be given these tokens, or not asked for this."""


class TrainingError(MoeCoreError):
    """A training run cannot go on."""


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite."""


class EngineError(MoeCoreError):
    """The engine cannot serve a request."""


class EngineBusy(EngineError):
    """The engine has no room for the request now."""


class PromptTooLong(EngineError):
    """The prompt does not fit the model's context or the cache."""


class Cancelled(MoeCoreError):
    """The caller asked to stop."""


class MissingLibrary(MoeCoreError):
    """An optional library is not installed, or too old for what was asked of it."""


def placed(field: str, sentence: str) -> SpecError:
    """The refusal of one field; of the whole where none is named."""
    refusal = SpecError(sentence)
    refusal.faults = (((field,) if field else (), sentence),)
    return refusal
