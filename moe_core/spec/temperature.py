"""How a gate's temperature moves while it learns; stored with the model, together with the place that was reached."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_core.sentences import CORE
from moe_core.spec.base import Spec, refuse

Temperature = Annotated[float, Field(ge=1e-3, le=100.0)]


class TemperatureSpec(Spec):
    """From `start` to `end` over `num_steps` steps; `step` is where training stands, and what a served model uses."""

    kind: Literal["constant", "linear", "cosine", "exponential"] = "cosine"
    """The shape of the way."""
    start: Temperature = 2.0
    """The temperature at step 0."""
    end: Temperature = 1.0
    """The temperature from `num_steps` on."""
    num_steps: Annotated[int, Field(ge=1, le=1 << 31)] = 1000
    """How long the way is."""
    step: Annotated[int, Field(ge=0, le=1 << 31)] = 0
    """Where training stands."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "constant" and self.start != self.end:
            sentence = CORE.say("constant_temperature", start=f"{self.start:g}", end=f"{self.end:g}")
            refuse([(("end",), sentence)])
        return self

    def at(self, step: int) -> float:
        """The temperature at a step; the end's from `num_steps` on."""
        progress = min(1.0, max(0.0, step / self.num_steps))
        if progress in (0.0, 1.0) or self.kind == "constant":
            return self.start if progress == 0.0 else self.end
        if self.kind == "exponential":
            return self.start * (self.end / self.start) ** progress
        if self.kind == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * progress

    @property
    def now(self) -> float:
        """The temperature where training stands."""
        return self.at(self.step)

    def advanced_to(self, step: int) -> TemperatureSpec:
        """The same schedule, with the place that training has reached; what is saved with the model."""
        return TemperatureSpec.parse({**self.model_dump(), "step": step})
