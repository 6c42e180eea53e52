"""The axes of a version's counts, as its specification says: known before the first token came, and when none comes."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.domains import codes_of
from deployments.models import Deployment
from registry.models import ModelVersion
from telemetry.cube import Shape


@dataclass(frozen=True, slots=True)
class Axes:
    """What a board draws when nothing was counted: every lamp is there, and none is lit."""

    shape: Shape
    num_layers: int

    @property
    def is_dense(self) -> bool:
        """Whether there are layers, and none with experts."""
        return self.num_layers > 0 and not self.shape.layers


def axes_of(deployment: Deployment, version_id: int | None) -> Axes:
    """Return the axes of a version (default: the wanted one); a dense one has layers, but none with experts."""
    wanted = version_id or deployment.desired_version_id
    spec = ModelVersion.objects.filter(pk=wanted).values_list("spec", flat=True).first() or {}
    moe = spec.get("moe")
    num_layers = int(spec.get("num_hidden_layers") or 0)
    if not moe:
        return Axes(Shape(), num_layers)
    shape = Shape(("", *codes_of(deployment)), tuple(moe["moe_layers"]), int(moe["num_experts"]))
    return Axes(shape, num_layers)
