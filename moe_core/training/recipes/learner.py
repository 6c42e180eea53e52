"""The shape that every recipe has for the loop: numbered steps, tensors to keep, figures to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from moe_core.training.forward import Pass
from moe_core.training.tally import Tally


@dataclass(slots=True)
class StepFigures:
    """What one step tells those who watch."""

    # Language-model loss of the batch, in nats a token.
    loss: float
    # One pass a lane.
    passes: list[Pass]
    learning_rate: float
    # Of all gradients, before clipping.
    gradient_norm: float


class Learner(Protocol):
    """A part of the model that learns in steps; what step n sees depends on n and the weights alone."""

    stage: str
    num_steps: int
    peak_learning_rate: float

    def step(self, step: int) -> StepFigures:
        """Learn from one batch. Raises NonFiniteLoss before any weight has changed."""
        ...

    def count_forced(self, tally: Tally, step: int) -> None:
        """Count the load of a step that asked no router."""
        ...

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs, in groups for the checkpoint."""
        ...

    def frozen_groups(self) -> frozenset[str]:
        """Names of the groups that will not change any more."""
        ...

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back what `groups` gave."""
        ...
