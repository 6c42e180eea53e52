"""What a job row is made of, and the rows that every kind of job asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

from accounts.caller import Caller
from common.errors import Conflict
from registry.models import ModelVersion, VersionState
from registry.selectors import version_get


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a job row is made of."""

    name: str
    spec: dict[str, Any]
    inputs: dict[str, Any]
    artifacts: dict[str, str] = field(default_factory=dict)
    base_version: ModelVersion | None = None


def ready_version(caller: Caller, version_id: int) -> ModelVersion:
    """The team's version, whose bytes must be whole."""
    version = version_get(caller.team, version_id)
    if version.state != VersionState.READY:
        raise Conflict(
            _("The bytes of %(version)s are damaged; it cannot be tuned.") % {"version": str(version)}
        )
    return version
