"""What a training run asks of the process around it: where files lie, who listens, when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from moe_core.errors import Cancelled

Stop = Literal["cancel", "pause"]


class Paused(Cancelled):
    """The caller asked to pause; a checkpoint holds the state to go on from."""


class JobIO(Protocol):
    """The surroundings of one run."""

    @property
    def inputs(self) -> Mapping[str, Path]:
        """Named input files and directories, to be read only."""
        ...

    @property
    def out_dir(self) -> Path:
        """The directory that the result is written into; it does not exist yet, or is empty."""
        ...

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints live; it outlives this process."""
        ...

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Tell whoever watches."""
        ...

    def saved_checkpoint(self, path: Path, step: int, stage: str, sha256: str) -> None:
        """A complete checkpoint lies at `path`; `sha256` is that of its manifest."""
        ...

    def should_stop(self) -> Stop | None:
        """Whether the caller wants the run to end early, and how."""
        ...


def finite_or_null(value: Any) -> Any:
    """The same JSON value with null in the place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value
